"""The codec `adaptive`: one step for all values of a message, rounded to whole steps, entropy-coded.

With one step for all, values far below it cost next to nothing: the bits go where the change is, which is what
choosing the most-changed channels does by hand, and what rate-distortion theory asks of a quantiser (reverse
water-filling, Cover and Thomas, section 10.3.3). How coarse the step is decides how long the message gets; it is told
by the root mean square of the values, or by the bytes the message may take.

Layout of the bytes: step f32 | one class (4 bits) for each tensor that has values, padded to whole bytes | the integers
(`spatl.wire.entropy`), each in the context of its tensor's class.
"""

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.channels.layout import Places
from spatl.channels.vectors import SUMMED, all_finite, parts_of
from spatl.errors import UpdateRejected
from spatl.wire.codec import Codec, expanded
from spatl.wire.entropy import LARGEST_INTEGER, Symbols, decode_symbols, encode_symbols
from spatl.wire.runs import Runs

_STEP: Final = struct.Struct("<f")
_LARGEST_STEP: Final = 2.0**60
_LARGEST_SCALE: Final = 2.0**48
NUM_CLASSES: Final = 16
_CLASSES_PER_OCTAVE: Final = 2
_LOWEST_OCTAVE: Final = -6
_FINEST: Final = 0.125  # root mean squares, from which on the steps of a grid go
_OCTAVES: Final = 14
_GRID: Final = 8  # steps to an octave
CHANGE_STEP: Final = 2.0
"""The step of a change of the encoder, in root mean squares of the values, where no length is given; by measurement."""
COARSE_STEP: Final = 2.0 * math.sqrt(2.0)
"""The step of a coarse change; likewise. The power of two nearest to it is from two root mean squares to four."""
_LEAST_SENT: Final = 0.125
"""The share of a coarse change's squares that lies in values of half a step and more, at least."""
UNIT_BITS: Final = 24
"""Steps for `encode_multiples` are powers of two from 2^-24, so that sums of what was decoded are exact."""
_SMALLEST_CHANGE: Final = 2.0**-UNIT_BITS
STEP: Final = 3.0
"""The step of an update that is rounded at random; likewise."""


class Adaptive(Codec):
    """One step for all values, some times their root mean square or as fine as the bytes allow, entropy-coded.

    Args:
        coarse: Whether a change of the encoder takes a longer step, where no length is given.
    """

    name = "adaptive"
    number = 8
    relative = True
    sums = True

    def __init__(self, *, coarse: bool = False) -> None:
        self.coarse = coarse

    def coarser(self) -> "Adaptive":
        """Return the same codec with coarse changes."""
        return Adaptive(coarse=True)

    def num_bytes(self, *, num_values: int, num_channels: int) -> int:
        """About a bit and a half for each value: what rounding at random takes."""
        return planned_bytes(num_values)

    def encode(
        self, values: Tensor, places: Places, *, generator: torch.Generator, max_bytes: int | None = None
    ) -> bytes:
        """Round up or down at random, and encode the integers."""
        if max_bytes is not None:
            return encode_within(values, places, max_bytes=max_bytes, generator=generator)
        return encode_rounded(values, places, step=STEP * root_mean_square(values), generator=generator)

    def decode(self, data: memoryview, places: Places) -> Tensor:
        """Read the integers, times the step."""
        return decode(data, places)

    def compact(self, data: memoryview, places: Places) -> "WholeSteps":
        """Read the integers, and the step."""
        return read_adaptive(data, places)

    def encode_change(
        self, difference: Tensor, places: Places, *, generator: torch.Generator, max_bytes: int | None = None
    ) -> bytes:
        """Round to the nearest step, and encode the integers.

        What is decoded is a whole number of 2^-24.
        """
        if self.coarse and max_bytes is None:
            return encode_coarse_change(difference, places)
        return encode_change(difference, places, max_bytes=max_bytes)

    def encode_sum(self, offsets: NDArray[np.int64], places: Places) -> bytes | None:
        """Encode the sum exactly, where its integers are not too large."""
        return encode_multiples(offsets, places)


def encode_rounded(values: Tensor, places: Places, *, step: float, generator: torch.Generator) -> bytes:
    """Round values to multiples of a step, up or down at random so that the mean is the value, and encode them.

    Args:
        values: float32 [V]; what is not finite makes bytes that the receiver refuses.
        places: Where the values belong.
        step: Greater than 0.
        generator: The source of the rounding.
    """
    return _encode(values, places, step, lambda part: _uniform(part.stop - part.start, generator))


def encode_within(values: Tensor, places: Places, *, max_bytes: int, generator: torch.Generator) -> bytes:
    """Do what `encode_rounded` does with the finest step whose bytes are at most `max_bytes`.

    A budget that even the coarsest step exceeds is exceeded: by then hardly a value is left.
    """
    uniform = _uniform(len(values), generator)
    return finest(steps_of(values), max_bytes, lambda step: _encode(values, places, step, uniform.__getitem__))


def encode_change(values: Tensor, places: Places, *, max_bytes: int | None = None) -> bytes:
    """Round values to the nearest multiples of a power of two, and encode them.

    Neither at random nor with a step that makes up for it, because what this loses of a change goes into the next one.
    The step is about twice the root mean square of the values, or the finest whose bytes are at most `max_bytes`.
    """
    scale = root_mean_square(values)
    if max_bytes is None:
        return _encode_nearest(values, places, _power_of_two(CHANGE_STEP * scale))
    smallest = _power_of_two(_FINEST * scale)
    steps = [math.ldexp(smallest, place) for place in range(_OCTAVES)]
    return finest(steps, max_bytes, lambda step: _encode_nearest(values, places, step))


def encode_coarse_change(values: Tensor, places: Places) -> bytes:
    """Round values to the nearest multiples of a power of two from two to four of their root mean squares, and encode.

    What is below half a step, most of a change, is not sent: it stays in the difference, and is sent once it has grown
    to that, or never, where it was noise. Of values that are much alike none may be so large, in this change and in all
    that follow: where those sent would hold less than an eighth of the squares, the step is halved until they do.

    Args:
        values: float32 [V]; what is not finite makes bytes that the receiver refuses.
        places: Where the values belong.
    """
    scale = root_mean_square(values)
    step, least = _power_of_two(COARSE_STEP * scale), _LEAST_SENT * scale**2 * len(values)
    exact = values.detach().to("cpu", torch.float32).numpy()
    while _energy(exact, beyond=step / 2) < least and step > _SMALLEST_CHANGE:
        step /= 2
    return _encode_nearest(values, places, step)


def encode_multiples(offsets: NDArray[np.int64], places: Places) -> bytes | None:
    """Encode whole numbers of 2^-24 exactly, or return None where one is too large for that.

    Args:
        offsets: int64 [V].
        places: Where they belong.
    """
    used = np.bitwise_or.reduce(offsets, initial=0)
    zeros = int(used & -used).bit_length() - 1 if used else 0
    multiples = offsets >> zeros
    if len(multiples) and np.abs(multiples).max() > LARGEST_INTEGER:
        return None
    step = math.ldexp(1.0, zeros - UNIT_BITS)
    return _encode_integers((multiples[part].astype(np.int32) for part in parts_of(len(multiples))), places, step)


@dataclass(frozen=True, eq=False)
class WholeSteps:
    """Values as whole numbers of one step: a byte for most.

    Attributes:
        integers: [V].
        step: The message's.
    """

    integers: Symbols
    step: np.float32

    @property
    def num_bytes(self) -> int:
        """The memory that they take."""
        return self.integers.symbols.nbytes + self.integers.escapes.nbytes

    def of_part(self, part: slice) -> Tensor:
        """Some of the values, float32."""
        values = self.integers.of_part(part).astype(np.float32)
        values *= self.step
        return torch.from_numpy(values)


def decode(data: memoryview, places: Places) -> Tensor:
    """Decode what the functions above wrote: float32 [V] on the CPU.

    Raises:
        UpdateRejected: The bytes are not V values of these places.
    """
    return expanded(read_adaptive(data, places), len(places))


def read_adaptive(data: memoryview, places: Places) -> WholeSteps:
    """Read what the functions above wrote, to make values of it when they are asked for.

    Raises:
        UpdateRejected: The bytes are not V values of these places.
    """
    runs = Runs.of(places)
    start = _STEP.size + (len(runs.present) + 1) // 2
    if len(data) < start:
        raise UpdateRejected(f"{len(data)} bytes of adaptive values, fewer than their first {start}")
    (step,) = _STEP.unpack_from(data)
    if not 0 < step <= _LARGEST_STEP:
        raise UpdateRejected(f"the step of adaptive values must be a positive number, got {step}")
    classes = read_classes(data[_STEP.size : start], len(runs.present))
    return WholeSteps(decode_symbols(data[start:], runs.spread(classes)), np.float32(step))


def planned_bytes(num_values: int) -> int:
    """About what so many values take at three root mean squares to the step: a bit and a half each, and the classes."""
    return 16 + (3 * num_values + 15) // 16


def root_mean_square(values: Tensor) -> float:
    """The root mean square of values, never quite 0 and never so large that a step would not fit the wire."""
    norm = math.hypot(
        *(float(torch.linalg.vector_norm(each, dtype=torch.float64)) for each in torch.split(values, SUMMED))
    )
    exact = norm / math.sqrt(len(values)) if len(values) else 0.0
    return max(min(_LARGEST_SCALE, exact), 1e-30)  # in this order, NaN gives the largest


def steps_of(values: Tensor) -> list[float]:
    """Steps that a message with a length to keep to may take, ascending: an eighth of an octave apart."""
    scale = root_mean_square(values)
    return [scale * _FINEST * 2 ** (place / _GRID) for place in range(_GRID * _OCTAVES)]


def _energy(exact: NDArray[np.float32], *, beyond: float) -> float:
    """The sum of the squares of the values that are larger in magnitude: half a step itself rounds up or to nothing."""
    parts = (exact[part].astype(np.float64) for part in parts_of(len(exact)))
    return math.fsum(float(np.square(own, where=np.abs(own) > beyond, out=np.zeros_like(own)).sum()) for own in parts)


def _power_of_two(step: float) -> float:
    """The power of two nearest to a step, at least the unit of `encode_multiples`."""
    return math.ldexp(1.0, max(round(math.log2(step)), -UNIT_BITS))


def finest(steps: Sequence[float], max_bytes: int, encode: Callable[[float], bytes]) -> bytes:
    """Return what `encode` makes of the first ascending step whose bytes are at most `max_bytes`, or of the last."""
    found = encode(steps[-1])
    low, high = 0, len(steps) - 1  # at `high` it is coarse enough, or never
    while low < high:
        middle = (low + high) // 2
        data = encode(steps[middle])
        if len(data) <= max_bytes:
            high, found = middle, data
        else:
            low = middle + 1
    return found


def _encode_nearest(values: Tensor, places: Places, step: float) -> bytes:
    """Round values to the nearest multiples of a step, and encode them."""
    half = np.float32(0.5)
    return _encode(values, places, step, lambda _: half)


def _encode(
    values: Tensor, places: Places, step: float, uniform: Callable[[slice], NDArray[np.float32] | np.float32]
) -> bytes:
    """Round values to multiples of a step, up where `uniform` and the remainder exceed a step, and encode them."""
    exact = values.detach().to("cpu", torch.float32).numpy()
    if not all_finite(torch.from_numpy(exact)):
        return _refused(places)
    rounded = (_rounded(exact[part], step, uniform(part)) for part in parts_of(len(exact)))
    return _encode_integers(rounded, places, step)


def _rounded(exact: NDArray[np.float32], step: float, uniform: NDArray[np.float32] | np.float32) -> NDArray[np.int32]:
    rounded = np.floor(exact / np.float32(step) + uniform)
    integers: NDArray[np.int32] = np.clip(rounded, -LARGEST_INTEGER, LARGEST_INTEGER).astype(np.int32)
    return integers


def _refused(places: Places) -> bytes:
    """Return bytes that a receiver refuses."""
    return _STEP.pack(math.nan) + bytes((len(Runs.of(places).present) + 1) // 2)


def _encode_integers(parts: Iterable[NDArray[np.int32]], places: Places, step: float) -> bytes:
    runs = Runs.of(places)
    integers = Symbols.of(parts, len(places))
    classes = classes_of(runs.means(((part, np.abs(own)) for part, own in integers.parts()), np.int64))
    coded = encode_symbols(integers, runs.spread(classes))
    return b"".join([_STEP.pack(step), classes_bytes(classes), coded])


def classes_of(magnitudes: NDArray[np.float64]) -> NDArray[np.uint8]:
    """uint8 [T], the classes of tensors by the mean magnitudes of their values in steps, two to an octave."""
    octaves = np.log2(magnitudes.clip(2.0 ** (_LOWEST_OCTAVE - 1))) - _LOWEST_OCTAVE
    classes: NDArray[np.uint8] = np.floor(_CLASSES_PER_OCTAVE * octaves + 1).clip(0, NUM_CLASSES - 1).astype(np.uint8)
    return classes


def classes_bytes(classes: NDArray[np.uint8]) -> bytes:
    """Write classes, four bits each."""
    padded = np.zeros((len(classes) + 1) // 2 * 2, dtype=np.uint8)
    padded[: len(classes)] = classes
    return (padded[::2] | padded[1::2] << 4).astype(np.uint8).tobytes()


def read_classes(data: memoryview, number: int) -> NDArray[np.uint8]:
    """Read so many classes, uint8 [T].

    Raises:
        UpdateRejected: There are others behind them.
    """
    packed = np.frombuffer(data, dtype=np.uint8)
    nibbles = np.stack([packed & 15, packed >> 4], axis=1).ravel()
    if nibbles[number:].any():
        raise UpdateRejected("there is a class for a tensor beyond the last")
    return nibbles[:number]


def _uniform(num_values: int, generator: torch.Generator) -> NDArray[np.float32]:
    return torch.rand(num_values, generator=generator).numpy()
