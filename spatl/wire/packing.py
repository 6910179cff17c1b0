"""Scales, bits, and numbers as float16 of a scale: pieces that several codecs write, and check as they read them."""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spatl.errors import UpdateRejected

LARGEST_SCALE: Final = 2.0**100
"""What a scale may be at most; a receiver refuses more."""
_SCALE_BYTES: Final = 4


def scales_bytes(scales: NDArray[np.float64]) -> bytes:
    """Write scales as float32; one that is not finite, or too large, so that it will be refused."""
    fits = scales <= LARGEST_SCALE  # false of NaN
    return np.where(fits, scales, math.inf).astype("<f4").tobytes()


def read_scales(data: memoryview, name: str) -> NDArray[np.float32]:
    """Read scales, float32 [T], of a codec of some name.

    Raises:
        UpdateRejected: One is negative, not finite, or larger than `LARGEST_SCALE`.
    """
    scales = np.frombuffer(data, dtype="<f4").astype(np.float32)
    wrong = ~((scales >= 0) & (scales <= LARGEST_SCALE))
    if wrong.any():
        raise UpdateRejected(f"a scale of {name} values must be from 0 to 2^100, got {scales[wrong][0]}")
    return scales


def bits_bytes(bits: NDArray[np.bool_]) -> bytes:
    """Write bits, least significant first, with zeros up to the byte's end."""
    return np.packbits(bits, bitorder="little").tobytes()


def read_bits(data: memoryview, number: int, name: str) -> NDArray[np.bool_]:
    """Read so many bits, bool.

    Raises:
        UpdateRejected: One after the last is set.
    """
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")
    if bits[number:].any():
        raise UpdateRejected(f"there is a bit of {name} values after the last")
    return bits[:number].view(np.bool_)


def halves_bytes(values: NDArray[np.floating]) -> bytes:
    """Write the largest magnitude as float32, and each value over it as float16, little-endian, rounded to nearest.

    Args:
        values: [K], of any float; what is not finite makes bytes that are refused.
    """
    head = scales_bytes(np.abs(values).max(initial=0.0, keepdims=True).astype(np.float64))
    scale = float(np.frombuffer(head, dtype="<f4")[0])
    shares = np.zeros(len(values), dtype=np.float64)
    if 0 < scale < math.inf:
        shares = (values.astype(np.float64) / scale).clip(-1.0, 1.0)
    return head + shares.astype("<f2").tobytes()


def halves_length(number: int) -> int:
    """Length in bytes of so many values."""
    return _SCALE_BYTES + 2 * number


def read_halves(data: memoryview, number: int, name: str) -> tuple[NDArray[np.float32], memoryview]:
    """Read so many values, float32 [K], and return the bytes after them.

    Raises:
        UpdateRejected: The bytes are too few, or a value is not finite or larger than the largest.
    """
    end = halves_length(number)
    if len(data) < end:
        raise UpdateRejected(f"{len(data)} bytes of {name} values, fewer than their first {end}")
    (scale,) = read_scales(data[:_SCALE_BYTES], name)
    shares = np.frombuffer(data[_SCALE_BYTES:end], dtype="<f2").astype(np.float32)
    if not (np.abs(shares) <= 1).all():
        raise UpdateRejected(f"a share of the largest of {name} values must be at most 1 in magnitude")
    return shares * scale, data[end:]
