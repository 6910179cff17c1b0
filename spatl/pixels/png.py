"""Pixels as a PNG file, by zlib alone: pages have pictures where Pillow is not installed."""

import struct
import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES: Final = {1: 0, 3: 2}
"""Greyscale and RGB, by the number of channels (ISO/IEC 15948, table 11.1)."""


def png_of(pixels: NDArray[np.uint8]) -> bytes:
    """Return the PNG file of an image; equal pixels make equal bytes with one release of zlib.

    Args:
        pixels: uint8 `[1 or 3, H, W]`, grey or red, green and blue.

    Raises:
        ValueError: It has another shape or dtype.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] not in _COLOUR_TYPES or not pixels.size:
        raise ValueError(f"expected uint8 [1 or 3, H, W], got {pixels.dtype} {list(pixels.shape)}")
    channels, height, width = pixels.shape
    rows = pixels.transpose(1, 2, 0).reshape(height, width * channels)
    unfiltered = np.concatenate([np.zeros((height, 1), dtype=np.uint8), rows], axis=1)  # filter type 0 before each row
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(unfiltered.tobytes(), 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
