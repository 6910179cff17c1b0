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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.channels.layout import Places
from spatl.channels.vectors import SUMMED, all_finite, parts_of
from spatl.errors import UpdateRejected
from spatl.wire.codec import Codec
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
_ZONE: Final = 0.35
"""What is added to a magnitude in steps before its fraction is cut off: below 0.65 steps it becomes 0."""
_LARGEST_GAIN: Final = 2.0
_LEAST_KEPT: Final = 0.15
"""A tensor of whose squares rounding towards zero would keep less is rounded at random; by measurement."""
CHANGE_STEP: Final = 2.0
"""The step of a change of the encoder, in root mean squares of the values, where no length is given; by measurement."""
ZONE_STEP: Final = 2.5
"""The step of an update that is rounded towards zero; likewise."""
UNIT_BITS: Final = 24
"""Steps for `encode_multiples` are powers of two from 2^-24, so that sums of what was decoded are exact."""
STEP: Final = 3.0
"""The step of an update that is rounded at random; likewise."""


class Adaptive(Codec):
    """One step for all values, some times their root mean square or as fine as the bytes allow, entropy-coded.

    Args:
        zone: Whether values are rounded towards zero, and not updates at random, so that the mean is the value, and
            changes to the nearest.
    """

    name = "adaptive"
    number = 8
    relative = True
    sums = True

    def __init__(self, *, zone: bool = False) -> None:
        self._zone = zone

    def unbiased(self) -> "Adaptive":
        """Return the same codec with rounding at random."""
        return Adaptive()

    def towards_zero(self) -> "Adaptive":
        """Return the same codec with rounding towards zero."""
        return Adaptive(zone=True)

    def num_bytes(self, *, num_values: int, num_channels: int) -> int:
        """About a bit and a half for each value: what rounding at random takes."""
        return planned_bytes(num_values)

    def encode(
        self, values: Tensor, places: Places, *, generator: torch.Generator, max_bytes: int | None = None
    ) -> bytes:
        """Round up or down at random, or towards zero, and encode the integers."""
        towards_zero = self._zone
        if max_bytes is not None:
            return encode_within(values, places, max_bytes=max_bytes, generator=generator, towards_zero=towards_zero)
        scale = root_mean_square(values)
        data = None
        if towards_zero:
            data = encode_towards_zero(values, places, step=ZONE_STEP * scale, generator=generator)
        return data or encode_rounded(values, places, step=STEP * scale, generator=generator)

    def decode(self, data: memoryview, places: Places) -> Tensor:
        """Read the integers, times the step."""
        return decode(data, places)

    def encode_change(
        self, difference: Tensor, places: Places, *, generator: torch.Generator, max_bytes: int | None = None
    ) -> bytes:
        """Round to the nearest, or towards zero, to multiples of a power of two.

        What is decoded is a whole number of 2^-24.
        """
        return encode_change(difference, places, max_bytes=max_bytes, towards_zero=self._zone)

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


def encode_towards_zero(values: Tensor, places: Places, *, step: float, generator: torch.Generator) -> bytes | None:
    """Round v to q = sign(v) floor(|v| / step + 0.35) and encode q, times a step that is written longer.

    The step that is written is <v, v> / <v, q>: what is decoded has v's own part along v, whatever became 0. Tensors of
    whose squares less than 0.15 would be left with a step of 2.5 root mean squares are left out of that, and rounded to
    whole steps at random: they would never move otherwise.

    Args:
        values: float32 [V]; what is not finite makes bytes that the receiver refuses.
        places: Where the values belong.
        step: Greater than 0.
        generator: The source of the rounding at random.

    Returns:
        The bytes; None where the step would have to be more than twice as long, because hardly a value is as large as a
        step: of values that are all alike, all would be 0.
    """
    return _towards_zero(values, places, step, lambda part: _uniform(part.stop - part.start, generator))


def encode_within(
    values: Tensor, places: Places, *, max_bytes: int, generator: torch.Generator, towards_zero: bool = False
) -> bytes:
    """Do what `encode_rounded` does with the finest step whose bytes are at most `max_bytes`.

    Or what `encode_towards_zero` does, if there is such a step for it. A budget that even the coarsest step exceeds is
    exceeded: by then hardly a value is left.
    """
    steps = steps_of(values)
    uniform = _uniform(len(values), generator)
    if towards_zero:
        data = finest(steps, max_bytes, lambda step: _towards_zero(values, places, step, uniform.__getitem__) or b"")
        if data:
            return data
    return finest(steps, max_bytes, lambda step: _encode(values, places, step, uniform.__getitem__))


def encode_change(values: Tensor, places: Places, *, max_bytes: int | None = None, towards_zero: bool = False) -> bytes:
    """Round values to the nearest multiples of a power of two, or towards zero, and encode them.

    Neither at random nor with a step that makes up for it, because what this loses of a change goes into the next one.
    The step is about twice the root mean square of the values, or the finest whose bytes are at most `max_bytes`.
    """

    def encode(step: float) -> bytes:
        if not towards_zero:
            return _encode(values, places, step, lambda _: half)
        exact = values.detach().to("cpu", torch.float32).numpy()
        if not all_finite(torch.from_numpy(exact)):
            return _refused(places)
        return _encode_integers((_cut(exact[part], step) for part in parts_of(len(exact))), places, step)

    half, scale = np.float32(0.5), root_mean_square(values)
    if max_bytes is None:
        return encode(_power_of_two(CHANGE_STEP * scale))
    smallest = _power_of_two(_FINEST * scale)
    return finest([math.ldexp(smallest, place) for place in range(_OCTAVES)], max_bytes, encode)


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


def decode(data: memoryview, places: Places) -> Tensor:
    """Decode what the functions above wrote: float32 [V] on the CPU.

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
    integers = decode_symbols(data[start:], runs.spread(classes))
    values = np.empty(len(integers), dtype=np.float32)
    for part, own in integers.parts():
        np.multiply(own.astype(np.float32), np.float32(step), out=values[part])
    return torch.from_numpy(values)


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


def _towards_zero(
    values: Tensor, places: Places, step: float, uniform: Callable[[slice], NDArray[np.float32]]
) -> bytes | None:
    """Do what `encode_towards_zero` does, with random numbers for some values at a time."""
    exact, runs = values.detach().to("cpu", torch.float32).numpy(), Runs.of(places)
    if not all_finite(torch.from_numpy(exact)):
        return _refused(places)
    energy, kept = _kept(exact, runs, None), _kept(exact, runs, step)
    usual = ZONE_STEP * root_mean_square(values)
    at_random = usual * (kept if usual == step else _kept(exact, runs, usual)) < _LEAST_KEPT * energy
    cut_energy, cut_kept = float(energy[~at_random].sum()), float(kept[~at_random].sum())
    if cut_energy > _LARGEST_GAIN * step * cut_kept or (cut_kept == 0 and bool(at_random.any())):
        return None
    written = cut_energy / cut_kept if cut_kept else step
    chosen = runs.spread(at_random)

    def rounded(part: slice) -> NDArray[np.int32]:
        integers, own = _cut(exact[part], step), chosen[part]
        if own.any():
            integers[own] = _rounded(exact[part][own], written, uniform(part)[own])
        return integers

    return _encode_integers(map(rounded, parts_of(len(exact))), places, written)


def _kept(exact: NDArray[np.float32], runs: Runs, step: float | None) -> NDArray[np.float64]:
    """float64 [T]: by tensor <v, q> of what rounding towards zero leaves in whole steps; <v, v> without a step."""

    def products() -> Iterator[tuple[slice, NDArray[np.float64]]]:
        for part in parts_of(len(exact)):
            own = exact[part].astype(np.float64)
            yield part, own * (own if step is None else _cut(exact[part], step))

    return runs.sums(products(), np.float64)


def _cut(exact: NDArray[np.float32], step: float) -> NDArray[np.int32]:
    """Values in whole steps, rounded towards zero but for 0.35 of a step."""
    magnitudes = np.floor(np.abs(exact) / np.float32(step) + np.float32(_ZONE))
    np.minimum(magnitudes, np.float32(LARGEST_INTEGER), out=magnitudes)
    integers: NDArray[np.int32] = np.copysign(magnitudes, exact).astype(np.int32)
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
