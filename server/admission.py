"""Who is let in: updates whose size fits what was folded in before, of clients that do not keep failing.

What an update must be to be read at all, `protocol` and the strategy check. Here is what only a history can tell.
"""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from spatl.errors import UpdateRejected
from spatl.protocol import Update
from spatl.selection.layout import EncoderLayout

_ROUNDS_REMEMBERED = 5
_FIRST_TRUST = 0.25
_MOST_TRUST = 0.5
_SHARE_OF_AGREEMENT = 0.25


class UpdateTooLarge(UpdateRejected):
    """An update beyond the bound; a run in which all are has diverged."""


@dataclass(frozen=True)
class Admission:
    """What is remembered of the rounds before.

    Attributes:
        sizes: The median size of the updates that were folded in, of each of the last rounds with any.
        failures: How many updates in a row each client was refused.
        away: The last round that each client is left out of.
        trust: A quarter, and what the agreements of each client with the others add to it, by `judged`.
    """

    sizes: tuple[float, ...] = ()
    failures: Mapping[int, int] = field(default_factory=dict)
    away: Mapping[int, int] = field(default_factory=dict)
    trust: Mapping[int, float] = field(default_factory=dict)

    @property
    def usual(self) -> float | None:
        """The size that others are measured by, the largest of the medians; None before the first round."""
        return max(self.sizes, default=None)

    def admitted(self, clients: Iterable[int], server_round: int) -> list[int]:
        """The clients that may be asked in a round: all of them, if none were left otherwise."""
        everyone = list(clients)
        return [client for client in everyone if self.away.get(client, 0) < server_round] or everyone

    def trusts(self, client: int) -> bool:
        """Whether a client has agreed with the others more than it has not."""
        return self.trust.get(client, _FIRST_TRUST) >= 0

    def judged(self, agreements: Mapping[int, float]) -> "Admission":
        """What is remembered after a round's updates were compared.

        A client that knows what few others do may point a little against them for some rounds; one that works against
        them does so in full. What a client agrees counts a quarter and never adds up to more than a half, so that
        whoever turns is out in a few rounds. What it disagreed is not forgotten but outweighed: a client that is not
        folded in any more comes to point where the others do, for they unlearn what only it knows.

        Args:
            agreements: By client, as `spatl.aggregation.agreements` returns them.
        """
        trust = dict(self.trust)
        for client, agreement in agreements.items():
            more = agreement if agreement < 0 else _SHARE_OF_AGREEMENT * agreement
            trust[client] = min(_MOST_TRUST, trust.get(client, _FIRST_TRUST) + more)
        return replace(self, trust=trust)

    def after(
        self,
        server_round: int,
        *,
        folded: Mapping[int, float],
        refused: Iterable[int],
        max_failures: int,
        rounds_away: int,
    ) -> "Admission":
        """What is remembered after a round.

        Args:
            server_round: The round.
            folded: The size of the update of each client that was folded in.
            refused: The clients whose update was refused.
            max_failures: So many refusals in a row leave a client out.
            rounds_away: For how many rounds; each refusal after it does so again, until an update is folded in.
        """
        failures = {client: number for client, number in self.failures.items() if client not in folded}
        failures |= {client: failures.get(client, 0) + 1 for client in refused}
        away = {client: last for client, last in self.away.items() if last > server_round}
        away |= {client: server_round + rounds_away for client in refused if failures[client] >= max_failures}
        sizes = [*self.sizes, statistics.median(folded.values())] if folded else self.sizes
        return replace(self, sizes=tuple(sizes[-_ROUNDS_REMEMBERED:]), failures=failures, away=away)


def size_of(update: Update, layout: EncoderLayout) -> float:
    """The root mean square of an update's parameters: comparable whatever share of them is sent; 0 of none."""
    values = update.values[update.selection.entries(layout) < layout.num_parameter_entries].double()
    return math.sqrt(float(values.square().mean())) if len(values) else 0.0


def check_size(size: float, usual: float | None, bound: float | None) -> None:
    """Refuse an update that is more than `bound` times larger than usual.

    Raises:
        UpdateTooLarge: It is.
    """
    if usual is not None and bound is not None and not size <= bound * usual:
        largest = bound * usual
        raise UpdateTooLarge(
            f"the update's root mean square is {size:.3g}, more than the {largest:.3g} that server.norm_bound allows"
        )


def check_trust(trust: float) -> None:
    """Refuse the update of a client whose agreements with the others add up to less than nothing.

    Raises:
        UpdateRejected: They do.
    """
    if trust < 0:
        raise UpdateRejected(
            f"the client's updates point against those of the others: its trust is {trust:.2f}, and "
            "server.aggregation: agreement lets in what is not below 0"
        )


def clip_update(update: Update, size: float, usual: float | None, factor: float | None) -> Update:
    """Scale an update down to `factor` times the usual size; if that changes it, it no longer counts as corrected."""
    if usual is None or factor is None or size <= factor * usual:
        return update
    return replace(update, values=update.values * (factor * usual / size), corrected=False)
