"""Values of a message by the tensors that they belong to, for codecs that keep a number for each."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from spatl.channels.layout import Places

_Label = TypeVar("_Label", np.uint8, np.bool_, np.float32)


@dataclass(frozen=True, eq=False)
class OfTensors:
    """Tensors that have values in a message, in the layout's order.

    Attributes:
        ranks: int32 [V], the position among these tensors of that of each value.
        counts: int64 [T], how many values each has.
    """

    ranks: NDArray[np.int32]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, places: Places) -> "OfTensors":
        """The tensors of values at some places."""
        owners, lengths = (each.numpy() for each in places.runs)
        present, ranks = np.unique(owners, return_inverse=True)
        counts = np.bincount(ranks, weights=lengths, minlength=len(present)).astype(np.int64)
        return cls(ranks.astype(np.int32).repeat(lengths), counts)

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """float64 [T], the sum of the values (float64 [V]) of each tensor."""
        return np.bincount(self.ranks, weights=values, minlength=len(self.counts)).astype(np.float64, copy=False)


@dataclass(frozen=True)
class Runs:
    """Values of one tensor after another, by the runs that they form; each tensor forms one, or few.

    Attributes:
        present: int64 [T], the tensors that have values, ascending.
        ranks: int64 [R], the position in `present` of each run's tensor.
        begins: int64 [R], the first value of each run.
        lengths: int64 [R].
    """

    present: NDArray[np.int64]
    ranks: NDArray[np.int64]
    begins: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, places: Places) -> "Runs":
        """The runs of values at some places."""
        owners, lengths = (each.numpy() for each in places.runs)
        present = np.flatnonzero(np.bincount(owners, minlength=1))
        return cls(present, np.searchsorted(present, owners), lengths.cumsum() - lengths, lengths)

    def sums(self, parts: Iterable[tuple[slice, NDArray[Any]]], dtype: DTypeLike) -> NDArray[np.float64]:
        """float64 [T], the sums of values that come some at a time, added up in a type run by run."""
        sums = np.zeros(len(self.begins), dtype=dtype)
        for part, values in parts:
            own = self._of_part(part)
            begins = (self.begins[own] - part.start).clip(0)
            sums[own] += np.add.reduceat(values, begins, dtype=sums.dtype)
        return self._of_tensors(sums)

    def means(self, parts: Iterable[tuple[slice, NDArray[Any]]], dtype: DTypeLike) -> NDArray[np.float64]:
        """float64 [T], the means likewise."""
        return self.sums(parts, dtype) / self._of_tensors(self.lengths)

    def _of_tensors(self, sums: NDArray[Any]) -> NDArray[np.float64]:
        """float64 [T], by tensor the sum over its runs."""
        totals: NDArray[np.float64] = np.bincount(self.ranks, weights=sums, minlength=len(self.present)).astype(float)
        return totals

    def spread(self, labels: NDArray[_Label]) -> NDArray[_Label]:
        """[V], to each value the label, of [T], of its tensor."""
        return labels[self.ranks].repeat(self.lengths)

    def spread_part(self, labels: NDArray[_Label], part: slice) -> NDArray[_Label]:
        """Some of that."""
        own, ends = self.of_part(labels, part)
        return own.repeat(np.diff(ends, prepend=0))

    def of_part(self, labels: NDArray[_Label], part: slice) -> tuple[NDArray[_Label], NDArray[np.int64]]:
        """The labels of the runs that some of the values are of, and where each ends among these values, int64."""
        own = self._of_part(part)
        ends = (self.begins[own] + self.lengths[own]).clip(max=part.stop) - part.start
        return labels[self.ranks[own]], ends

    def _of_part(self, part: slice) -> slice:
        """The runs that some of the values are of."""
        first = np.searchsorted(self.begins, part.start, side="right") - 1
        return slice(int(first), int(np.searchsorted(self.begins, part.stop, side="left")))
