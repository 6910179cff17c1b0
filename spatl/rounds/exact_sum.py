"""Exact sums: vectors of sums that do not depend on the order of their terms, in fixed point."""

import torch
from torch import Tensor

from spatl.channels.kept import Kept

_HIGH_BITS = 8  # the high limb counts units of 2**-8,

_LOW_BITS = 58  # the low limb units of 2**-58

_TERMS_BETWEEN_CARRIES = 4096


class ExactSum:
    """A vector of sums that are independent of the order of their terms.

    Each float64 term is rounded once, to a multiple of 2**-58, and added as two integers.
    """

    def __init__(self, length: int) -> None:
        self._high = torch.zeros(length, dtype=torch.int64)
        self._low = torch.zeros(length, dtype=torch.int64)
        self._num_terms = 0

    def add_(self, kept: Kept | None, terms: Tensor, part: slice = slice(None)) -> None:
        """Add float64 `terms` [V] to the entries of a part that travel; to all of them for None."""
        high = (terms * 2.0**_HIGH_BITS).floor_()
        low = high * 2.0**-_HIGH_BITS
        low = torch.sub(terms, low, out=low).mul_(2.0**_LOW_BITS).round_()
        for limb, own in ((self._high, high), (self._low, low)):
            if kept is None:
                limb[part] += own.to(torch.int64)
            else:
                kept.add_(limb[part], own.to(torch.int64))
        self._num_terms += 1
        if self._num_terms % _TERMS_BETWEEN_CARRIES == 0:
            carry = self._low >> (_LOW_BITS - _HIGH_BITS)
            self._high += carry
            self._low -= carry << (_LOW_BITS - _HIGH_BITS)

    def total(self, part: slice = slice(None)) -> Tensor:
        """float64, the sums of a part of the vector."""
        # Carried to the end first, so that the same integers always round the same way.
        carry = self._low[part] >> (_LOW_BITS - _HIGH_BITS)
        low = self._low[part] - (carry << (_LOW_BITS - _HIGH_BITS))
        high = self._high[part] + carry
        return high.to(torch.float64).mul_(2.0**-_HIGH_BITS).add_(low.to(torch.float64).mul_(2.0**-_LOW_BITS))
