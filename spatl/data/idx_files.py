"""Arrays in the format of MNIST's files, IDX, plain or gzipped (LeCun, Cortes and Burges, 1998).

Two bytes of zero, one that names the kind of number, one with the number of dimensions, each dimension as four bytes,
and then the numbers, the last dimension fastest; all with the most significant byte first. What the header promises is
compared with the length of the file before room is made for it.
"""

import gzip
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Final, cast

import numpy as np
from numpy.typing import NDArray

from spatl.data.checks import one_line
from spatl.errors import DataError

_NUMBERS: Final[Mapping[int, str]] = MappingProxyType(
    {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
)
_GZIP = b"\x1f\x8b"
_MOST_DIMENSIONS = 8
_LARGEST_GROWTH = 1032  # of deflate: 258 bytes from two bits, one for a length and one for a distance


def read_idx(dataset: str, file: Path) -> NDArray[Any]:
    """Return the array of an IDX file.

    Args:
        dataset: The data set's name, for messages.
        file: Plain or gzipped, which its first bytes tell and not its name.

    Returns:
        Of the shape in its header, in the byte order of this machine: uint8, int8, int16, int32, float32 or float64.

    Raises:
        DataError: It is not there, not of this format, damaged, shorter or longer than its header says, or too large.
    """
    try:
        with file.open("rb") as stream:
            packed = stream.read(len(_GZIP)) == _GZIP
            stream.seek(0)
            if not packed:
                return _array(dataset, file, stream, file.stat().st_size)
            with gzip.open(stream) as content:
                return _array(dataset, file, cast(BinaryIO, content), None)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{dataset}: {file} is truncated or damaged: {one_line(error)}; copy it again") from error
    except OSError as error:
        raise DataError(f"{dataset}: cannot read {file}: {error.strerror}") from error


def _array(dataset: str, file: Path, stream: BinaryIO, num_bytes: int | None) -> NDArray[Any]:
    """Return the array of an open file that has so many bytes; None for a gzipped one, whose content nobody counted."""
    start = stream.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _NUMBERS or not 1 <= start[3] <= _MOST_DIMENSIONS:
        raise DataError(
            f"{dataset}: {file} must be an IDX file, which begins with the bytes 0, 0, a kind of number from 8 to 14 "
            f"and 1 to {_MOST_DIMENSIONS} dimensions, got {', '.join(map(str, start)) or 'no byte'}"
        )
    header = stream.read(4 * start[3])
    if len(header) < 4 * start[3]:
        raise DataError(f"{dataset}: {file} ends within its header: copy it again")
    shape = tuple(int(side) for side in np.frombuffer(header, ">u4"))
    numbers = np.dtype(_NUMBERS[start[2]])
    expected = math.prod(shape) * numbers.itemsize
    told = f"its header says {' x '.join(map(str, shape))} numbers, {expected:,} bytes"
    found = None if num_bytes is None else num_bytes - 4 - len(header)
    if found is not None and found != expected:
        raise DataError(f"{dataset}: {file} is truncated or damaged: {told}, got {found:,}; copy it again")
    if (most := _LARGEST_GROWTH * file.stat().st_size) < expected:
        raise DataError(f"{dataset}: {file} is truncated or damaged: {told}, of {most:,} that it can hold at most")
    content = stream.read(expected)
    rest = stream.read(1)  # of a gzipped file this also checks its sum
    if len(content) < expected or rest:
        came = f"more than {len(content):,}" if rest else f"{len(content):,}"
        raise DataError(f"{dataset}: {file} is truncated or damaged: {told}, got {came}; copy it again")
    return np.frombuffer(content, numbers).reshape(shape).astype(numbers.newbyteorder("="), copy=False)
