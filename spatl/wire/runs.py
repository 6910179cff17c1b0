"""Values of a message by the tensors that they belong to, for codecs that keep a number for each."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spatl.channels.layout import Places


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
