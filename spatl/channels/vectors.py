"""Long vectors, some entries at a time: what lies between float32 and float32 takes several times their memory."""

import ctypes
import math
import sys
from collections.abc import Callable, Iterator
from typing import Final

import torch
from torch import Tensor

PART: Final = 2**17
"""Entries at a time, where what is worked out for each of them would take several times the memory of the vector."""
SUMMED: Final = 2**19
"""Entries at a time of a sum of floats, which may depend in its last bit on where it is cut."""


def parts_of(length: int, size: int = PART) -> Iterator[slice]:
    """A vector in parts of a size, the last of which may be shorter."""
    for start in range(0, length, size):
        yield slice(start, min(length, start + size))


def mean_square(values: Tensor) -> float:
    """The mean of the squares of values [V], in float64; 0 of none."""
    if len(values) <= SUMMED:
        return float(values.double().square_().mean()) if len(values) else 0.0
    sums = (float(values[part].double().square_().sum()) for part in parts_of(len(values), SUMMED))
    return math.fsum(sums) / len(values)


def all_finite(values: Tensor) -> bool:
    """Return whether no value of a tensor is NaN or infinite."""
    flat = values.detach().reshape(-1)
    if (
        values.is_floating_point() and values.itemsize > 1 and len(flat)
    ):  # NaN is the least and the greatest of all that it is among
        return all(map(math.isfinite, torch.stack(torch.aminmax(flat)).tolist()))
    return all(bool(torch.isfinite(flat[part]).all()) for part in parts_of(len(flat)))


def give_back(num_entries: int) -> None:
    """Give memory that was freed back to the system, after work on vectors of so many entries.

    glibc keeps for itself what is below 32 MB, in pieces that the next work may not fit: a sixth of the peak of ten
    million parameters. Of a small network it is not worth the time; elsewhere the system sees to it.
    """
    if num_entries >= _LARGE and TRIM is not None:
        TRIM(0)


def _trim() -> Callable[[int], object] | None:
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


_LARGE: Final = 2**20
TRIM: Final = _trim()
