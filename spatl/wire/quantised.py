"""Codecs that write values as few levels of a scale per channel, packed or entropy-coded."""

import math
import struct
from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.channels.layout import Places
from spatl.errors import UpdateRejected
from spatl.wire.codec import Codec, check_length
from spatl.wire.entropy import MAX_CONTEXTS, decode_integers, encode_integers


class _Quantised(Codec):
    """Whole multiples of a step per channel, -levels..levels of them, as digits of a number system, some to a byte.

    The step is the channel's scale, a bound of its magnitudes, divided by the levels. Rounding goes up or down at
    random, so that its mean is the value (QSGD, Alistarh et al. 2017).
    """

    name: str
    number: int
    relative = True
    levels: int

    def num_bytes(self, *, num_values: int, num_channels: int) -> int:
        return _TOP_BYTES + num_channels + -(-num_values // self._digits_per_byte)

    def encode(
        self, values: Tensor, places: Places, *, generator: torch.Generator, max_bytes: int | None = None
    ) -> bytes:
        return self.pack(*quantise(values, places.local_channels, levels=self.levels, generator=generator))

    def decode(self, data: memoryview, places: Places) -> Tensor:
        channels = places.local_channels
        end = _TOP_BYTES + _num_channels(channels)
        check_length(data, end + -(-channels.numel() // self._digits_per_byte), self.name)
        scales = np.frombuffer(data[_TOP_BYTES:end], dtype=np.uint8)
        codes = self._unpack_codes(np.frombuffer(data[end:], dtype=np.uint8))[: channels.numel()]
        return dequantise(_read_top(data), scales, codes, channels, levels=self.levels)

    def pack(self, top: np.float32, scales: NDArray[np.uint8], codes: NDArray[np.int8]) -> bytes:
        """The bytes of what `quantise` returned."""
        num_bytes = -(-len(codes) // self._digits_per_byte)
        digits = np.zeros((num_bytes, self._digits_per_byte), dtype=np.uint8)
        np.add(codes.view(np.uint8), np.uint8(self.levels), out=digits.ravel()[: len(codes)])
        packed = digits[:, -1].copy()
        for position in range(self._digits_per_byte - 2, -1, -1):
            packed *= np.uint8(self._base)
            packed += digits[:, position]
        return b"".join([_top_bytes(top), scales.tobytes(), packed.tobytes()])

    def _unpack_codes(self, packed: NDArray[np.uint8]) -> NDArray[np.int8]:
        digits = np.empty((len(packed), self._digits_per_byte), dtype=np.uint8)
        for position in range(self._digits_per_byte):
            higher = packed // np.uint8(self._base)
            np.subtract(packed, higher * np.uint8(self._base), out=digits[:, position])
            packed = higher
        if packed.any():
            raise UpdateRejected(f"the {self.name} values contain a byte that means none")
        digits -= np.uint8(self.levels)
        return digits.ravel().view(np.int8)

    @property
    def _base(self) -> int:
        return 2 * self.levels + 1

    @cached_property
    def _digits_per_byte(self) -> int:
        """As many as a byte has room for."""
        return max(number for number in range(1, 9) if self._base**number <= 256)


class Int8(_Quantised):
    """127 levels to either side of zero, up to the largest value of the channel; one value a byte."""

    name = "int8"
    number = 2
    levels = 127


class Int4(_Quantised):
    """7 levels to either side of zero, up to the largest value of the channel; two values a byte."""

    name = "int4"
    number = 3
    levels = 7


class Ternary(_Quantised):
    """Zero and the largest value of the channel with either sign; five values a byte."""

    name = "ternary"
    number = 4
    levels = 1


class _EntropyCoded(Codec):
    """The integers of another codec at their entropy, or as that codec writes them where this is shorter.

    The values of one channel are the more alike in magnitude the fewer they are, as the largest of them sets the
    step. So the logarithm of their number is the context, which costs nothing to tell. On updates of a ResNet-20 it
    saves 3 to 6 % of one context for all (int4: 74.7 for 79.7 kB), of a ResNet-8 1 to 3 %, of a small CNN 0.5 %; the
    scale itself as the context saves less.
    """

    name: str
    number: int
    relative = True
    _plain: _Quantised

    def num_bytes(self, *, num_values: int, num_channels: int) -> int:
        return 1 + self._plain.num_bytes(num_values=num_values, num_channels=num_channels)

    def encode(
        self, values: Tensor, places: Places, *, generator: torch.Generator, max_bytes: int | None = None
    ) -> bytes:
        channels = places.local_channels
        top, scales, codes = quantise(values, channels, levels=self._plain.levels, generator=generator)
        changes = np.diff(scales, prepend=np.uint8(0)).view(np.int8)
        coded = encode_integers(np.concatenate([changes, codes], dtype=np.int32), _contexts(channels))
        if _TOP_BYTES + len(coded) < self._plain.num_bytes(num_values=len(codes), num_channels=len(scales)):
            return b"".join([_CODED, _top_bytes(top), coded])
        return _PLAIN + self._plain.pack(top, scales, codes)

    def decode(self, data: memoryview, places: Places) -> Tensor:
        flag, rest = bytes(data[:1]), data[1:]
        if flag == _PLAIN:
            return self._plain.decode(rest, places)
        if flag != _CODED or len(rest) < _TOP_BYTES:
            raise UpdateRejected(f"{len(data)} bytes of {self.name} values begin with the flag {flag.hex()}")
        channels = places.local_channels
        integers = decode_integers(rest[_TOP_BYTES:], _contexts(channels))
        scales, codes = np.split(integers, [_num_channels(channels)])
        levels = self._plain.levels
        if len(codes) and not -levels <= codes.min() <= codes.max() <= levels:
            raise UpdateRejected(f"the {self.name} values exceed {levels} levels")
        return dequantise(_read_top(rest), scales.cumsum().astype(np.uint8), codes, channels, levels=levels)


class Int8Entropy(_EntropyCoded):
    """The integers of int8, entropy-coded."""

    name = "int8-entropy"
    number = 5
    _plain = Int8()


class Int4Entropy(_EntropyCoded):
    """The integers of int4, entropy-coded."""

    name = "int4-entropy"
    number = 6
    _plain = Int4()


class TernaryEntropy(_EntropyCoded):
    """The integers of ternary, entropy-coded."""

    name = "ternary-entropy"
    number = 7
    _plain = Ternary()


_PLAIN: Final = b"\0"

_CODED: Final = b"\1"


# The scales of a message are the largest, `top`, times 2^(-b/16) for a byte b; 255 is the scale of a channel of zeros.
# The sixteen factors of an octave are whole numbers of 2^-16, so that every platform decodes the same.
_TOP_BYTES: Final = 4

_LARGEST_TOP: Final = 2.0**127

_SMALLEST_TOP: Final = 2.0**-100

_STEPS_PER_OCTAVE: Final = 16

_FACTORS: Final = (
    65536, 62757, 60097, 57549, 55109, 52773, 50535, 48393, 46341, 44376, 42495, 40693, 38968, 37316, 35734, 34219,
)  # fmt: skip

_ZERO_SCALE: Final = 255

_RELATIVE_SCALES: Final = np.array(
    [math.ldexp(_FACTORS[b % _STEPS_PER_OCTAVE], -16 - b // _STEPS_PER_OCTAVE) for b in range(_ZERO_SCALE)] + [0.0],
    dtype=np.float32,
)


def quantise(
    values: Tensor, channels: Tensor, *, levels: int, generator: torch.Generator
) -> tuple[np.float32, NDArray[np.uint8], NDArray[np.int8]]:
    """Round values to whole steps of their channel, up or down at random so that the mean is the value.

    Args:
        values: float32 [V], on any device.
        channels: int64 [V].
        levels: How many steps the channel's scale is.
        generator: The source of the random numbers.

    Returns:
        The largest scale, NaN if a value is not finite; uint8 [C], each channel's scale, in sixteenths of an octave
        below it; int8 [V], the steps.
    """
    exact = values.detach().to("cpu", torch.float32)
    num_channels = _num_channels(channels)
    largest = torch.zeros(num_channels).scatter_reduce_(0, channels, exact.abs(), "amax").numpy()
    top = largest.max(initial=np.float32(0))
    if not np.isfinite(top):
        return np.float32(np.nan), np.zeros(num_channels, dtype=np.uint8), np.zeros(len(exact), dtype=np.int8)
    top = np.float32(min(top, _LARGEST_TOP)) if top >= _SMALLEST_TOP else np.float32(0)
    possible = top * _RELATIVE_SCALES[:_ZERO_SCALE]
    scales = (np.searchsorted(-possible, -largest, side="right") - 1).clip(0, None).astype(np.uint8)
    scales[(largest == 0) | (top == 0)] = _ZERO_SCALE
    scale = top * _RELATIVE_SCALES[scales]
    steps_per_unit = np.divide(levels, scale, out=np.zeros_like(scale), where=scale > 0)
    steps = steps_per_unit.take(channels.numpy())
    steps *= exact.numpy()
    steps += _uniform(len(steps), generator)
    np.floor(steps, out=steps)
    np.clip(steps, -levels, levels, out=steps)
    return top, scales, steps.astype(np.int8)


def dequantise(
    top: np.float32,
    scales: NDArray[np.uint8],
    codes: NDArray[np.signedinteger],
    channels: Tensor,
    *,
    levels: int,
) -> Tensor:
    """The values, float32 [V], of what `quantise` returned.

    Args:
        top: The largest scale.
        scales: uint8 [C].
        codes: Integers [V].
        channels: int64 [V].
        levels: As for `quantise`.
    """
    step = top * _RELATIVE_SCALES[scales] / np.float32(levels)
    values = step.take(channels.numpy())
    values *= codes
    return torch.from_numpy(values)


def _num_channels(channels: Tensor) -> int:
    """C, one more than the highest channel."""
    return int(channels.numpy().max(initial=-1)) + 1


def _uniform(num_values: int, generator: torch.Generator) -> NDArray[np.float32]:
    """float32 [V] in [0, 1), from NumPy, which draws them in half of torch's time."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return np.random.default_rng(seed).random(num_values, dtype=np.float32)


def _contexts(channels: Tensor) -> NDArray[np.uint8]:
    """uint8 [C + V]: zero for the scales, then the number of bits of the number of values in each value's channel."""
    counts = np.bincount(channels.numpy())
    num_bits = np.searchsorted(1 << np.arange(MAX_CONTEXTS - 1), counts, side="right").astype(np.uint8)
    return np.concatenate([np.zeros(len(counts), dtype=np.uint8), num_bits.take(channels.numpy())])


def _top_bytes(top: np.float32) -> bytes:
    return struct.pack("<f", top)


def _read_top(data: memoryview) -> np.float32:
    top = np.frombuffer(data[:_TOP_BYTES], dtype="<f4")[0]
    if not 0 <= top <= _LARGEST_TOP:
        raise UpdateRejected(f"the values contain NaN or infinity: their largest scale is {top}")
    return np.float32(top)
