"""Robust averages by rank, and the agreement of updates with each other."""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Unpack

import torch
from torch import Tensor

from spatl.channels.kept import put_
from spatl.channels.layout import EncoderLayout
from spatl.channels.vectors import parts_of
from spatl.rounds.aggregation import Aggregator, AverageSettings
from spatl.rounds.few_senders import MOST_OF_ROBUST, restrain_few_
from spatl.wire.update import Update


class DenseAggregator(Aggregator):
    """An average that looks at all updates of a round at once.

    Every update is kept until the end, dense: as many encoders in float32 as there are replies.

    Args:
        trim_fraction: `server.trim_fraction`, in [0, 0.5).
        settings: Of `Aggregator`.
    """

    def __init__(self, *, trim_fraction: float, **settings: Unpack[AverageSettings]) -> None:
        super().__init__(**settings)
        self._trim_fraction = trim_fraction
        self._kept: list[Tensor] = []

    def add(self, update: Update, num_examples: int) -> None:
        """As of `Aggregator`."""
        super().add(update, num_examples)
        spread = spread_of(update, self._layout, self._layout.num_entries)
        if self._normalizes:
            spread[: self._layout.num_parameter_entries] /= update.step_weight
        self._kept.append(spread)


class RankedAggregator(DenseAggregator):
    """An average that few clients cannot move far: of the values that were sent of an entry, those in the middle.

    Each client counts alike: numbers of examples do not count, because they are the client's word. What too few sent,
    so few that most of them may be bad, moves at most as far as is usual (`spatl.rounds.few_senders`). c follows from
    how x moves, as the clients derive it, so that what x is guarded against does not reach c.
    """

    def _moves(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield some entries at a time, and how far they move, float64."""
        raise NotImplementedError

    @cached_property
    def _moved(self) -> Tensor:
        """float32 [N]: how far each entry moves, before any learning rate."""
        moved = torch.zeros(self._layout.num_entries)
        for part, each in self._moves():
            moved[part] = torch.where((self._senders > 0)[self._layout.owner_in(part)], each, 0.0).float()
        return restrain_few_(
            moved, torch.zeros_like(moved), self._senders, len(self._kept), self._layout, most=MOST_OF_ROBUST
        )

    def encoder(self) -> Tensor:
        """As of `Aggregator`."""
        encoder, factor = self.encoder_before.clone(), self._learning_rate * self._mean_step_weight()
        length = self._layout.num_parameter_entries
        for part in parts_of(self._layout.num_entries):
            moved = self._moved[part].double()
            moved[: max(0, length - part.start)] *= factor
            sent, before = (self._senders > 0)[self._layout.owner_in(part)], self.encoder_before[part]
            encoder[part] = torch.where(sent, (before.double() + moved).float(), before)
        return self._without_negative(encoder)

    def control(self) -> Tensor | None:
        """The control variate c after the round, float32 [P]: it follows from how x moves (`followed_control`).

        c is the weighted sum of the c_i only as far as the rule is their weighted mean.
        """
        if self._control is None or self._held_control is None:
            return None
        control, step_weight = self._control.clone(), 1.0 if self._normalizes else self._usual_step_weight()
        for part in parts_of(self._layout.num_parameter_entries):
            share = self._corrected[self._layout.owner_in(part)] / self._total_examples
            estimate = self._moved[part].double() / -step_weight
            change = share * (estimate - self._held_control[part].double())
            control[part] = (self._control[part].double() + self._damping * change).float()
        return control

    def _usual_step_weight(self) -> float:
        """The mean of the a_i, each alike; 1 of none."""
        weights = [weight for _, weight in self._step_weights]
        return math.fsum(weights) / len(weights) if weights else 1.0


class TrimmedMeanAggregator(RankedAggregator):
    """The mean of those that sent an entry, without the share `trim_fraction` of them at either end."""

    @property
    def _share(self) -> float:
        """The share of the senders that is left out at either end, in [0, 0.5]."""
        return self._trim_fraction

    def _moves(self) -> Iterator[tuple[slice, Tensor]]:
        for part, values in in_parts(self._kept):
            yield part, trimmed_mean(*ranked(values), self._share)


class MedianAggregator(TrimmedMeanAggregator):
    """The same without all but the middle one, or two."""

    @property
    def _share(self) -> float:
        return 0.5


def agreements(updates: Sequence[Update], trusted: Sequence[bool], layout: EncoderLayout) -> list[float]:
    """Return how far each update points where the others do: its cosine with the median, by entry, of the others.

    The others are the trusted ones but for the one that is judged, and only parameters count that it sent itself and
    enough of them did: a quarter, and at least two, so that nobody is judged by what nobody can tell.

    Args:
        updates: A round's, decoded and checked, in any order.
        trusted: Whether each of them counts for the median; if none does, all do.
        layout: The shared encoder.

    Returns:
        A number in [-1, 1] for each update; 0 where it, or the median, is zero, or too few others sent anything of it.
    """
    number = len(updates)
    if number < 2:
        return [0.0] * number
    spread = [spread_of(update, layout, layout.num_parameter_entries) for update in updates]
    counts = torch.tensor(trusted if any(trusted) else [True] * number)
    products, squares, of_median = (torch.zeros(number, dtype=torch.float64) for _ in range(3))
    enough = torch.tensor(
        [max(_FEWEST, math.ceil(_ENOUGH * (int(counts.sum()) - int(counts[one])))) for one in range(number)]
    )
    enough = enough.clamp(max=max(1, int(counts.sum()) - 1))
    for _, values in in_parts(spread):
        of_others, medians = medians_of_others(values, counts)
        for one in range(number):
            judged = ~values[one].isnan() & (of_others[one] >= enough[one])
            sent, median = torch.where(judged, values[one], 0.0), torch.where(judged, medians[one], 0.0)
            products[one] += sent @ median
            squares[one] += sent.square().sum()
            of_median[one] += median.square().sum()
    lengths = (squares * of_median).sqrt()
    return torch.where(lengths > 0, products / lengths.clamp(min=_SMALLEST_LENGTH), 0.0).clamp(-1, 1).tolist()


def medians_of_others(values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return, by entry, how many others sent it, and their median.

    Args:
        values: float64 [K, V], NaN where an entry was not sent.
        counts: bool [K], whose values count.

    Returns:
        int64 [K, V] and float64 [K, V], each row without the one that it is of; a median of none is 0.
    """
    trusted = torch.where(counts[:, None], values, math.nan)
    order = trusted.argsort(dim=0, stable=True)
    ascending = trusted.gather(0, order)
    rank = order.argsort(dim=0)
    own = ~trusted.isnan()
    number = own.sum(dim=0) - own.long()
    medians = torch.zeros_like(values)
    for middle in ((number - 1).clamp(min=0) // 2, number // 2):
        place = middle + (own & (rank <= middle)).long()  # the others, counted in the order of all
        medians += torch.where(number > 0, ascending.gather(0, place.clamp(max=len(values) - 1)), 0.0) / 2
    return number, medians


def spread_of(update: Update, layout: EncoderLayout, length: int) -> Tensor:
    """float32 [length], an update's values of the first entries, NaN where there is none."""
    spread = torch.full((length,), math.nan)
    for part, kept, values in update.selection.value_parts(layout, length):
        put_(spread[part], kept, update.values[values])
    return spread


def in_parts(vectors: Sequence[Tensor], *, start: int = 0) -> Iterator[tuple[slice, Tensor]]:
    """Some entries at a time of K vectors of one length, from one on, as float64 [K, V], and which they are."""
    for found in parts_of(max(0, len(vectors[0]) - start) if vectors else 0, _CHUNK):
        part = slice(start + found.start, start + found.stop)
        yield part, torch.stack([vector[part] for vector in vectors]).double()


def num_trimmed(share: float, number: int) -> int:
    """Return how many of a number a share of them is, rounded up."""
    return max(0, math.ceil(share * number - _ROUNDING))  # 0.15 of 100 is 15, not a little more


def ranked(values: Tensor) -> tuple[Tensor, Tensor]:
    """`values` [K, V] in ascending order, NaN last, and the number of the others [V]."""
    return values.sort(dim=0).values, (~values.isnan()).sum(dim=0)


def trimmed_mean(ranked: Tensor, number: Tensor, trim_fraction: float) -> Tensor:
    """Means [V] of `ranked` [K, V], NaN last, without the first and last of the `number` [V] values there are.

    A share is rounded up, so that one of three is left out as well, but something always remains:
    of a half, the median, the mean of the middle two where their number is even.
    """
    share = trim_fraction * number.double() - _ROUNDING
    trimmed = torch.minimum(torch.ceil(share).long().clamp(min=0), (number - 1).clamp(min=0) // 2)
    rank = torch.arange(len(ranked))[:, None]
    kept = (rank >= trimmed) & (rank < number - trimmed)
    return torch.where(kept, ranked, 0.0).sum(dim=0) / kept.sum(dim=0).clamp(min=1)


_CHUNK = 2**16

_FEWEST = 2  # others by whom an entry is judged,

_ENOUGH = 0.25  # and the share of them

_ROUNDING = 1e-9

_SMALLEST_LENGTH = 1e-300  # for nothing but not to divide by zero
