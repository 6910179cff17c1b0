"""Byte planes: large vectors of numbers in fewer bytes without loss, each plane deflated where that is shorter.

The first bytes of floats of one kind are much alike, because they are the exponents, and the last ones are noise. Apart
from each other, the first are a third as long, and the last are not tried. A checkpoint of a large network is written
after every round, so that this must be fast rather than tight.

Layout of the bytes: number of values u64 | for each of four planes, from the lowest: its length deflated u64, or 0 for
one as it is | the planes.
"""

import struct
import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.errors import DamagedState

_HEAD = struct.Struct("<Q4Q")
_PART = 1 << 22  # bounds the memory besides the result
_SAMPLE = 1 << 14
_WORTH = 0.95  # a plane is deflated if the sample gets shorter than this share


def pack_planes(values: Tensor) -> Tensor:
    """Return the bytes, uint8 [B], that `unpack_planes` reads.

    Args:
        values: float32 or int32 [V], on the CPU.
    """
    bits = values.contiguous().numpy().view("<u4")
    planes = [_deflated(bits, place) for place in range(4)]
    head = _HEAD.pack(len(bits), *(len(plane) if deflated else 0 for plane, deflated in planes))
    data = bytearray().join([head, *(plane for plane, _ in planes)])
    return torch.frombuffer(data, dtype=torch.uint8)


def unpack_planes(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values, [V] of float32 or int32, of what `pack_planes` returned.

    Raises:
        DamagedState: The bytes are no such.
    """
    raw = data.contiguous().numpy().data
    try:
        number, *lengths = _HEAD.unpack_from(raw)
        planes, start = [], _HEAD.size
        for length in lengths:
            part = raw[start : start + (length or number)]
            start += len(part)
            planes.append(zlib.decompress(part) if length else part)
        if start != len(raw) or any(len(plane) != number for plane in planes):
            raise ValueError("its planes are of other lengths than it says")
    except (ValueError, struct.error, zlib.error) as error:
        raise DamagedState(f"a vector of numbers is damaged: {error}") from error
    bits = np.empty((number, 4), dtype=np.uint8)
    for place, plane in enumerate(planes):
        bits[:, place] = np.frombuffer(plane, dtype=np.uint8)
    return torch.from_numpy(bits.reshape(-1).view("<i4").astype(np.int32, copy=False)).view(dtype)


def _deflated(bits: NDArray[np.uint32], place: int) -> tuple[bytes, bool]:
    """Return a plane, deflated or as it is, and whether it is deflated."""
    plane = np.ascontiguousarray(bits.view(np.uint8)[place::4])
    sample = plane[:: max(1, len(plane) // _SAMPLE)].copy()
    if len(_deflate(sample)) < _WORTH * len(sample):
        data = _deflate(plane)
        if len(data) < len(plane):
            return data, True
    return plane.tobytes(), False


def _deflate(plane: NDArray[np.uint8]) -> bytes:
    """Deflate a plane by runs and frequencies only, without a search for repeated strings, of which there are none."""
    compressor = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    parts = [compressor.compress(plane[start : start + _PART].data) for start in range(0, len(plane), _PART)]
    return b"".join([*parts, compressor.flush()])
