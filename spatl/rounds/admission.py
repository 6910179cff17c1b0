"""Admission of updates: those whose size fits what was folded in before, of clients that do not keep failing.

What an update must be to be read at all, `protocol` and the strategy check. Here is what only a history can tell.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from spatl.channels.layout import EncoderLayout
from spatl.channels.vectors import mean_square
from spatl.errors import UpdateRejected
from spatl.wire.update import Update

_ROUNDS_REMEMBERED = 5
_GROWTH = 1.5  # of what is usual, from one round to the next at most
_LEAST_BOUNDED = 0.1  # of the encoder: by the default bound, what changes it by no more than itself is not refused
_LEAST_CLIPPED = 0.01
_FIRST_TRUST = 0.25
_MOST_TRUST = 0.5
_SHARE_OF_AGREEMENT = 0.25


class UpdateTooLarge(UpdateRejected):
    """An update beyond the bound; a run in which all are has diverged."""


@dataclass(frozen=True)
class Size:
    """Size of an update, or of updates as they usually are.

    Attributes:
        rms: The root mean square of the parameters' changes: comparable whatever share of them is sent.
        rate: The same per accumulated step weight (a_i), which is the root mean square of the mean gradient.
    """

    rms: float
    rate: float

    def times(self, usual: "Size") -> float:
        """Return how many times larger than usual it is: as a whole or per step weight, whichever is less.

        A client that trains longer from the same place goes further, but not further than its steps allow; one that
        trains shorter goes less far. With D(a) the distance after steps of weight a, which grows ever slower, D(a) is
        at most D(b) max(1, a / b). So neither many examples nor few make an update large.
        """
        return min(_ratio(self.rms, usual.rms), _ratio(self.rate, usual.rate))


@dataclass(frozen=True)
class Admission:
    """Memory of the rounds before.

    Attributes:
        sizes: The median of the clients' last sizes, after each of the last rounds with an update.
        largest: The largest lower quartile of these after any round, in either respect; None before the first round.
        failures: How many updates in a row each client was refused.
        away: The last round that each client is left out of.
        trust: A quarter, and what the agreements of each client with the others add to it, by `judged`.
        by_client: The size of each client's last update that was folded in.
        agreed: How far each client's last update agreed with the others'.
        accord: The lower third of these, after each of the last rounds.
    """

    sizes: tuple[Size, ...] = ()
    largest: Size | None = None
    failures: Mapping[int, int] = field(default_factory=dict)
    away: Mapping[int, int] = field(default_factory=dict)
    trust: Mapping[int, float] = field(default_factory=dict)
    by_client: Mapping[int, Size] = field(default_factory=dict)
    agreed: Mapping[int, float] = field(default_factory=dict)
    accord: tuple[float, ...] = ()

    @property
    def recent(self) -> Size | None:
        """The largest of the last rounds' medians; None before the first round."""
        return largest_of(self.sizes)

    def admitted(self, clients: Iterable[int], server_round: int) -> list[int]:
        """The clients that may be asked in a round: all of them, if none were left otherwise."""
        everyone = list(clients)
        return [client for client in everyone if self.away.get(client, 0) < server_round] or everyone

    def trusts(self, client: int) -> bool:
        """Return whether a client has agreed with the others more than it has not."""
        return self.trust.get(client, _FIRST_TRUST) >= 0

    def judged(self, agreements: Mapping[int, float]) -> "Admission":
        """Return what is remembered after a round's updates were compared.

        A client that knows what few others do may point a little against them for some rounds; one that works against
        them does so in full. What a client agrees counts a quarter and never adds up to more than a half, so that
        whoever turns is out in a few rounds. What it disagreed is not forgotten but outweighed: a client that is not
        folded in any more comes to point where the others do, for they unlearn what only it knows.

        Nothing counts as disagreement while clients do not agree as a whole: where each holds a class of its own, they
        point against each other, and nobody is bad. That is so if in any of the last five rounds a third of all clients
        disagreed when last seen.

        Args:
            agreements: By client, as `spatl.rounds.robust.agreements` returns them.
        """
        agreed = {**self.agreed, **agreements}
        lower_third = [sorted(agreed.values())[len(agreed) // 3]] if agreements else []
        accord = (*self.accord, *lower_third)[-_ROUNDS_REMEMBERED:]
        together, trust = min(accord, default=0.0) > 0, dict(self.trust)
        for client, agreement in agreements.items():
            more = (agreement if together else 0.0) if agreement < 0 else _SHARE_OF_AGREEMENT * agreement
            trust[client] = min(_MOST_TRUST, trust.get(client, _FIRST_TRUST) + more)
        return replace(self, trust=trust, agreed=agreed, accord=accord)

    def after(
        self,
        server_round: int,
        *,
        folded: Mapping[int, Size],
        refused: Iterable[int],
        max_failures: int,
        rounds_away: int,
    ) -> "Admission":
        """Return what is remembered after a round.

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
        by_client = {**self.by_client, **folded}
        sizes, largest = self.sizes, self.largest
        if folded:
            sizes = (*sizes, _grown(median_of(by_client.values()), self.recent))[-_ROUNDS_REMEMBERED:]
            usual = _grown(low_of(by_client.values()), largest)
            largest = largest_of([usual, largest or usual])
        return replace(self, by_client=by_client, sizes=sizes, largest=largest, failures=failures, away=away)


def size_of(update: Update, layout: EncoderLayout) -> Size:
    """The size of an update's parameters; 0 of none."""
    number = update.selection.num_entries(layout, layout.num_parameter_entries)
    rms = math.sqrt(mean_square(update.values[:number]))
    return Size(rms, rms / update.step_weight)


def median_of(sizes: Collection[Size]) -> Size:
    """The lower median of some sizes, at least one, in either respect."""
    return _ranked(sizes, (len(sizes) - 1) // 2)


def low_of(sizes: Collection[Size]) -> Size:
    """The lower quartile of some sizes, at least one, in either respect: the least of up to four.

    So low that most of the clients would have to be bad for what they send to say what is usual.
    """
    return _ranked(sizes, (len(sizes) - 1) // 4)


def _ranked(sizes: Collection[Size], rank: int) -> Size:
    return Size(sorted(size.rms for size in sizes)[rank], sorted(size.rate for size in sizes)[rank])


def _grown(size: Size, before: Size | None) -> Size:
    """A size, but not more than a factor larger than the one before: no few rounds make anything usual."""
    if before is None:
        return size
    return Size(min(size.rms, _GROWTH * before.rms), min(size.rate, _GROWTH * before.rate))


def largest_of(sizes: Iterable[Size]) -> Size | None:
    """The largest of some sizes, in either respect; None of none."""
    every = list(sizes)
    return Size(max(size.rms for size in every), max(size.rate for size in every)) if every else None


@dataclass(frozen=True)
class Usual:
    """Usual sizes, which a round's updates are measured by.

    Attributes:
        bounded: For `server.norm_bound`: the largest lower quartile of all rounds. It never shrinks, because a client
            that is new in a late round, or alone holds some classes, may send what all sent in the first.
        clipped: For `server.clip`: the largest median of the last rounds.
    """

    bounded: Size
    clipped: Size

    @classmethod
    def of(cls, largest: Size, recent: Size, *, encoder_rms: float) -> "Usual":
        """Return what is usual, but not less than a share of what the encoder's parameters are themselves.

        Where most clients have nothing left to learn, their updates are next to nothing, and one that still learns is
        thousands of times larger: FedRep once all but one have converged.

        Args:
            largest: The largest lower quartile of all rounds.
            recent: The largest median of the last rounds.
            encoder_rms: The root mean square of the encoder's parameters.
        """

        def at_least(size: Size, share: float) -> Size:
            return Size(max(size.rms, share * encoder_rms), size.rate)

        return cls(at_least(largest, _LEAST_BOUNDED), at_least(recent, _LEAST_CLIPPED))


def check_size(size: Size, usual: Size | None, bound: float | None) -> None:
    """Refuse an update that is more than `bound` times larger than usual.

    Raises:
        UpdateTooLarge: It is.
    """
    if usual is None or bound is None or size.times(usual) <= bound:
        return
    raise UpdateTooLarge(
        f"the update's root mean square is {size.rms:.3g}, {size.times(usual):.3g} times the usual for its steps; "
        f"server.norm_bound allows {bound:g}"
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


def clip_update(update: Update, size: Size, usual: Size | None, factor: float | None) -> Update:
    """Scale an update down to `factor` times the usual size; if that changes it, it no longer counts as corrected."""
    if usual is None or factor is None or size.times(usual) <= factor:
        return update
    return replace(update, values=update.values * (factor / size.times(usual)), corrected=False)


def _ratio(size: float, usual: float) -> float:
    if usual > 0:
        return size / usual
    return math.inf if size > 0 else 0.0
