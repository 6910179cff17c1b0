"""Equality to the bit."""

from collections.abc import Mapping

import torch
from torch import Tensor


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two vectors of four-byte numbers have the same bits, those of NaN and of zeros of either sign too."""
    return one.dtype == other.dtype and torch.equal(one.view(torch.int32), other.view(torch.int32))


def same_states(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts have the same names in the same order, dtypes and values."""
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )
