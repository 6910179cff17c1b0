"""The codec `eden`: one bit a value, the sign of each coordinate after a random rotation, with an unbiased scale.

EDEN at one bit (Vargaftik et al. 2022, arXiv 2108.08842, which at one bit is DRIVE, 2105.08339): a vector v of n values
is rotated, R v, its signs s are sent, and S = ||v||^2 / ||R v||_1, so that S R^T s has the mean v over the rotations.
R = H D / sqrt(n) is the structured one of the papers: Hadamard's matrix H after random signs D, drawn from a seed that
the message carries. Since s is whole, H s is too, and every platform decodes the same bits.

Our choices: values are rotated in blocks of at most 2^16 along the message, whatever tensor they are of; a block that
is no power of two is filled up with zeros or cut in powers of two, whichever is shorter, a scale being 32 bits.

Layout of the bytes: seed u32 | S / sqrt(n), f32, for each block | one bit for each value of the blocks, least
significant first, 1 for minus | zeros up to the byte's end. Nothing at all for no values.
"""

import struct
from functools import cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.channels.layout import Places
from spatl.seeding import random_bits
from spatl.wire.codec import Codec, check_length
from spatl.wire.packing import bits_bytes, read_bits, read_scales, scales_bytes

_SEED: Final = struct.Struct("<I")
_SCALE_BITS: Final = 32
LARGEST_BLOCK: Final = 2**16


class Rotated(Codec):
    """Signs after a random rotation, times the scale that makes them unbiased."""

    name = "eden"
    number = 17
    relative = True

    def num_bytes(self, *, num_values: int, num_channels: int) -> int:
        """One bit a value, and what blocks take; always exactly that."""
        blocks = blocks_of(num_values)
        return (_SEED.size + 4 * len(blocks) + (sum(blocks) + 7) // 8) if num_values else 0

    def encode(
        self, values: Tensor, places: Places, *, generator: torch.Generator, max_bytes: int | None = None
    ) -> bytes:
        """Rotate by a seed that is drawn, and write the signs."""
        if not len(values):
            return b""
        seed, blocks = int(torch.randint(2**32, (), generator=generator)), blocks_of(len(values))
        exact = np.zeros(sum(blocks), dtype=np.float64)
        exact[: len(values)] = values.detach().cpu().numpy()
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            rotated = _by_blocks(exact * random_signs(seed, len(exact)), blocks)
            squares, sums = (
                np.add.reduceat(each, np.cumsum([0, *blocks[:-1]])) for each in (exact * exact, np.abs(rotated))
            )
            scales = np.where(squares == 0, 0.0, squares / sums)  # ||v||^2 / ||H D v||_1 is S / sqrt(n)
        return b"".join([_SEED.pack(seed), scales_bytes(scales), bits_bytes(rotated < 0)])

    def decode(self, data: memoryview, places: Places) -> Tensor:
        """Rotate the signs back."""
        check_length(data, self.num_bytes(num_values=len(places), num_channels=0), self.name)
        if not len(places):
            return torch.zeros(0)
        (seed,), blocks = _SEED.unpack_from(data), blocks_of(len(places))
        end = _SEED.size + 4 * len(blocks)
        scales = read_scales(data[_SEED.size : end], self.name)
        minus = read_bits(data[end:], sum(blocks), self.name)
        values = _by_blocks(np.where(minus, np.float32(-1), np.float32(1)), blocks)
        values *= random_signs(seed, len(values))
        values *= scales.repeat(blocks)
        return torch.from_numpy(values[: len(places)].copy())


@cache
def blocks_of(num_values: int) -> tuple[int, ...]:
    """Sizes of the blocks that so many values are cut in, powers of two: those that take the fewest bits."""
    whole, rest = divmod(num_values, LARGEST_BLOCK)
    return (LARGEST_BLOCK,) * whole + _shortest(rest)


def _shortest(rest: int) -> tuple[int, ...]:
    if rest == 0:
        return ()
    filled = 1 << (rest - 1).bit_length()
    if filled == rest:
        return (filled,)
    half = filled // 2
    split = (half, *_shortest(rest - half))
    return (filled,) if filled <= sum(split) + _SCALE_BITS * (len(split) - 1) else split


def random_signs(seed: int, number: int) -> NDArray[np.float32]:
    """float32 [number]: 1 or -1, the same on every machine."""
    return np.float32(1) - np.float32(2) * random_bits(seed, number)


def hadamard(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """Products of Hadamard's matrix, of entries 1 and -1, with vectors, in sums and differences of one order.

    Args:
        rows: [M, n], M vectors of a power of two n.
    """
    number, size = rows.shape
    half = 1
    while half < size:
        pairs = rows.reshape(number, size // (2 * half), 2, half)
        rows = np.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), axis=2)
        half *= 2
    return rows.reshape(number, size)


def _by_blocks(vector: NDArray[np.floating], blocks: tuple[int, ...]) -> NDArray[np.floating]:
    """Each block times Hadamard's matrix of its size."""
    found, start = np.empty_like(vector), 0
    for size in blocks:
        found[start : start + size] = hadamard(vector[None, start : start + size])[0]
        start += size
    return found
