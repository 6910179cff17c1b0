"""Robust averages by rank, and the agreement of updates with each other."""

import math
from collections.abc import Iterator, Sequence
from typing import Unpack

import torch
from torch import Tensor

from spatl.channels.layout import EncoderLayout
from spatl.channels.vectors import parts_of
from spatl.rounds.aggregation import Aggregator, AverageSettings, positions
from spatl.wire.update import Update


class DenseAggregator(Aggregator):
    """An average that looks at all updates of a round at once.

    Every update is kept until the end, dense: as many encoders in float32 as there are replies. Only x is made by it: c
    stays the weighted sum of the c_i, for a client whose update is folded in goes on with its own c_i.

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


class TrimmedMeanAggregator(DenseAggregator):
    """An average that few clients cannot move far: the mean of those that sent an entry, without the ends.

    The share `trim_fraction` of the senders is left out at either end. Each counts alike: numbers of examples do not
    count, because they are the client's word.
    """

    @property
    def _share(self) -> float:
        """The share of the senders that is left out at either end, in [0, 0.5]."""
        return self._trim_fraction

    def encoder(self) -> Tensor:
        """As of `Aggregator`."""
        encoder, factor = self.encoder_before.clone(), self._learning_rate * self._mean_step_weight()
        for part, values in _in_parts(self._kept):
            moved = _trimmed_mean(*_ranked(values), self._share)
            moved[: max(0, self._layout.num_parameter_entries - part.start)] *= factor
            sent, before = (self._examples > 0)[self._layout.owner_in(part)], self.encoder_before[part]
            encoder[part] = torch.where(sent, (before.double() + moved).float(), before)
        return self._without_negative(encoder)


class MedianAggregator(TrimmedMeanAggregator):
    """The same without all but the middle one, or two."""

    @property
    def _share(self) -> float:
        return 0.5


def agreements(updates: Sequence[Update], trusted: Sequence[bool], layout: EncoderLayout) -> list[float]:
    """Return how far each update points where the others do: its cosine with the median, by entry, of trusted ones.

    Only parameters count, and what a client did not send is zero. Of fewer than two updates nothing can be said.

    Args:
        updates: A round's, decoded and checked, in any order.
        trusted: Whether each of them counts for the median; if none does, all do.
        layout: The shared encoder.

    Returns:
        A number in [-1, 1] for each update; 0 where it, or the median, is zero.
    """
    if len(updates) < 2:
        return [0.0] * len(updates)
    spread = [spread_of(update, layout, layout.num_parameter_entries) for update in updates]
    counts = torch.tensor(trusted if any(trusted) else [True] * len(updates))
    products, squares = (torch.zeros(len(updates), dtype=torch.float64) for _ in range(2))
    square_of_median = 0.0
    for _, values in _in_parts(spread):
        median = _trimmed_mean(*_ranked(values[counts]), 0.5)
        sent = torch.where(values.isnan(), 0.0, values)
        products += (sent * median).sum(dim=1)
        squares += sent.square().sum(dim=1)
        square_of_median += float(median.square().sum())
    lengths = (squares * square_of_median).sqrt()
    return torch.where(lengths > 0, products / lengths.clamp(min=_SMALLEST_LENGTH), 0.0).clamp(-1, 1).tolist()


def spread_of(update: Update, layout: EncoderLayout, length: int) -> Tensor:
    """float32 [length], an update's values of the first entries, NaN where there is none."""
    spread = torch.full((length,), math.nan)
    for part, kept, values in update.selection.value_parts(layout, length):
        spread[part][positions(kept)] = update.values[values]
    return spread


def _in_parts(vectors: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Some entries at a time of K vectors of one length, as float64 [K, V], and which they are."""
    for part in parts_of(len(vectors[0]) if vectors else 0, _CHUNK):
        yield part, torch.stack([vector[part] for vector in vectors]).double()


def _ranked(values: Tensor) -> tuple[Tensor, Tensor]:
    """`values` [K, V] in ascending order, NaN last, and the number of the others [V]."""
    return values.sort(dim=0).values, (~values.isnan()).sum(dim=0)


def _trimmed_mean(ranked: Tensor, number: Tensor, trim_fraction: float) -> Tensor:
    """Means [V] of `ranked` [K, V], NaN last, without the first and last of the `number` [V] values there are.

    A share is rounded up, so that one of three is left out as well, but something always remains:
    of a half, the median, the mean of the middle two where their number is even.
    """
    share = trim_fraction * number.double() - _ROUNDING  # 0.15 of 100 is 15, not a little more
    trimmed = torch.minimum(torch.ceil(share).long().clamp(min=0), (number - 1).clamp(min=0) // 2)
    rank = torch.arange(len(ranked))[:, None]
    kept = (rank >= trimmed) & (rank < number - trimmed)
    return torch.where(kept, ranked, 0.0).sum(dim=0) / kept.sum(dim=0).clamp(min=1)


_CHUNK = 2**16

_ROUNDING = 1e-9

_SMALLEST_LENGTH = 1e-300  # for nothing but not to divide by zero
