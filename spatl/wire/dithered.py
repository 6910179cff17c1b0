"""The codec `dithered`: one step for all values, rounded under a dither that the receiver knows and takes off again.

Subtractive dither (Schuchman 1964; Gray and Stockham 1993, "Dithered quantizers"; in federated learning UVeQFed,
Shlezinger et al. 2021): x steps become q = floor(x + u), u uniform in [0, 1), and q - (u - 1/2) is read. Its mean is
x, and it is off by a uniform error of variance 1/12 whatever x is, where q alone is off by x (1 - x) for x below 1.
That is the smaller one for small x: with B the mean of f (1 - f), f the fraction of x, q - w (u - 1/2) has the mean x
as well and the variance (1 - w) B + w^2 / 12, which is least for w = 6 B. So of a tensor's dither a share is taken off,
which its class tells: none where values hardly move, of which zeros stay zeros, and all of it where they span a step.

What integers cost is less than what rounding at random takes with the same step, although q is the same: the receiver
knows u, and with it which way q is likely to lie (`spatl.wire.densities`).

Layout of the bytes: step f32 | seed u32 of the dither | classes as of `adaptive` | for each class that occurs a density
| the integers (`spatl.wire.entropy`), each in the context of its class and of the eighth that its dither lies in.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.channels.layout import Places
from spatl.channels.vectors import all_finite, parts_of
from spatl.errors import UpdateRejected
from spatl.extensions.compiled import extension
from spatl.wire.adaptive import (
    classes_bytes,
    classes_of,
    finest,
    planned_bytes,
    read_classes,
    root_mean_square,
    steps_of,
)
from spatl.wire.codec import Codec, expanded
from spatl.wire.densities import DITHER_LEVELS, NUM_CELLS, fit_density, frequencies_by_dither
from spatl.wire.dither import DITHER_BITS, Dither
from spatl.wire.entropy import LARGEST_INTEGER, Symbols, decode_ranked, encode_ranked
from spatl.wire.runs import Runs

STEP: Final = 4.5
"""The step in root mean squares of the values, where no length is given; by measurement."""
SHARES: Final = (0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 7, 8, 8, 8, 8, 8)
"""What is taken off of the dither, in eighths, by class: 6 B of Laplace's distribution in the middle of the class."""

_DITHERS: ModuleType | None = extension("spatl.wire.dithers")
IS_COMPILED: Final = _DITHERS is not None
"""Whether this process has rounding under dither compiled."""

_HEAD: Final = struct.Struct("<fI")
_SMALLEST_STEP: Final = 2.0**-100
_LARGEST_STEP: Final = 2.0**60
_LEVEL_SHIFT: Final = np.uint32(DITHER_BITS - 3)  # of a number, the eighth that it lies in is left
_UNIT: Final = np.float32(2.0**-DITHER_BITS)
_HALF: Final = np.float32(2.0 ** (DITHER_BITS - 1))
_LONG: Final = 2**20
_STRIDE: Final = 7
"""Of a message so long, every seventh value is enough to follow its densities."""


class Dithered(Codec):
    """One step for all values, some times their root mean square or as fine as the bytes allow, under shared dither."""

    name = "dithered"
    number = 9
    relative = True

    def num_bytes(self, *, num_values: int, num_channels: int) -> int:
        """About a bit and a half for each value, as `adaptive` plans: less than that is taken."""
        return planned_bytes(num_values)

    def encode(
        self, values: Tensor, places: Places, *, generator: torch.Generator, max_bytes: int | None = None
    ) -> bytes:
        """Round under dither of a seed that is drawn, and encode the integers."""
        seed = int(torch.randint(2**32, (), generator=generator))
        if max_bytes is None:
            return encode_dithered(values, places, step=STEP * root_mean_square(values), seed=seed)
        return finest(steps_of(values), max_bytes, lambda step: encode_dithered(values, places, step=step, seed=seed))

    def decode(self, data: memoryview, places: Places) -> Tensor:
        """Read the integers, take the dither off, times the step."""
        return decode_dithered(data, places)

    def compact(self, data: memoryview, places: Places) -> "DitheredValues":
        """Read the integers, and what the values follow from."""
        return read_dithered(data, places)


def encode_dithered(values: Tensor, places: Places, *, step: float, seed: int) -> bytes:
    """Round values to whole steps under the dither of a seed, and encode them.

    Args:
        values: float32 [V]; what is not finite makes bytes that the receiver refuses.
        places: Where the values belong.
        step: Greater than 0; what is below 2^-100 is taken for that.
        seed: In 0..2^32 - 1.
    """
    exact, runs = values.detach().to("cpu", torch.float32).numpy(), Runs.of(places)
    if not all_finite(torch.from_numpy(exact)):
        return _HEAD.pack(float("nan"), seed) + bytes((len(runs.present) + 1) // 2)
    written = np.float32(max(step, _SMALLEST_STEP))
    magnitudes = ((part, np.abs(exact[part])) for part in parts_of(len(exact)))
    classes = classes_of(runs.means(magnitudes, np.float64) / float(written))
    head = _HEAD.pack(written, seed) + classes_bytes(classes)
    if not len(exact):
        return head
    rounding = _Rounding(written, Dither(seed), _Contexts.of(classes, runs))
    integers = Symbols.of(rounding.integers(exact), len(exact))
    coded = encode_ranked(integers, rounding.contexts.labels, rounding.contexts.number, lambda _: rounding.densities())
    return head + coded


def decode_dithered(data: memoryview, places: Places) -> Tensor:
    """Decode what `encode_dithered` wrote: float32 [V] on the CPU.

    Raises:
        UpdateRejected: The bytes are not V values of these places.
    """
    return expanded(read_dithered(data, places), len(places))


def read_dithered(data: memoryview, places: Places) -> "DitheredValues":
    """Read what `encode_dithered` wrote, to make values of it when they are asked for.

    Raises:
        UpdateRejected: The bytes are not V values of these places.
    """
    runs = Runs.of(places)
    start = _HEAD.size + (len(runs.present) + 1) // 2
    if len(data) < start:
        raise UpdateRejected(f"{len(data)} bytes of dithered values, fewer than their first {start}")
    step, seed = _HEAD.unpack_from(data)
    if not _SMALLEST_STEP <= step <= _LARGEST_STEP:
        raise UpdateRejected(f"the step of dithered values must be from 2^-100 to 2^60, got {step}")
    classes = read_classes(data[_HEAD.size : start], len(runs.present))
    contexts, dither = _Contexts.of(classes, runs), Dither(seed)
    for part in parts_of(len(places)):
        contexts.count_(part, dither)
    integers = decode_ranked(
        data[start:], contexts.labels, len(contexts.used),
        lambda levels: np.concatenate([frequencies_by_dither(row) for row in levels]),
    )  # fmt: skip
    shares = np.array(SHARES, dtype=np.float32)[classes] * (_UNIT / np.float32(8))
    return DitheredValues(integers, dither, np.float32(step), shares, runs)


@dataclass(frozen=True, eq=False)
class DitheredValues:
    """Values as their integers and what makes values of them: a byte for most.

    Attributes:
        integers: [V].
        dither: The message's.
        step: The message's.
        shares: float32 [T], by tensor what is taken off of a number of the dither.
        runs: Where the values lie.
    """

    integers: Symbols
    dither: Dither
    step: np.float32
    shares: NDArray[np.float32]
    runs: Runs

    @property
    def num_bytes(self) -> int:
        """The memory that they take, but for a little of each tensor."""
        return self.integers.symbols.nbytes + self.integers.escapes.nbytes

    def of_part(self, part: slice) -> Tensor:
        """Some of the values, float32.

        Numbers of the dither are whole until here: less 2^23 they are exact in float32, and so are integers and shares.
        What follows is rounded to the nearest float32, operation by operation, as IEEE 754 says: the dither times its
        share, the integer less that, this times the step.

        Args:
            part: At most `PART` of them.
        """
        if _DITHERS is not None and IS_COMPILED:
            return self._in_one_pass(_DITHERS, part)
        taken_off = self.dither.of_part(part).view(np.int32).astype(np.float32)
        taken_off -= _HALF
        taken_off *= self.runs.spread_part(self.shares, part)
        np.subtract(self.integers.of_part(part).astype(np.float32), taken_off, out=taken_off)
        taken_off *= self.step
        return torch.from_numpy(taken_off)

    def _in_one_pass(self, dithers: ModuleType, part: slice) -> Tensor:
        found = torch.empty(part.stop - part.start)
        shares, ends = self.runs.of_part(self.shares, part)
        symbols, escapes = self.integers.symbols[part], self.integers.escapes_in(part)
        dithers.undither(found.numpy(), symbols, escapes, shares, ends, *self.dither.state_before(part), self.step)
        return found


@dataclass(frozen=True, eq=False)
class _Contexts:
    """Contexts of the integers of a message.

    Attributes:
        used: int64 [K], the classes that occur, ascending.
        labels: uint8 [V], eight times the position of each value's class among them; `count_` adds the dither's eighth.
    """

    used: NDArray[np.int64]
    labels: NDArray[np.uint8]

    @classmethod
    def of(cls, classes: NDArray[np.uint8], runs: Runs) -> "_Contexts":
        """The contexts of classes, uint8 [T], without the dither."""
        used = np.flatnonzero(np.bincount(classes, minlength=1))
        firsts = (DITHER_LEVELS * np.searchsorted(used, classes)).astype(np.uint8)
        return cls(used, runs.spread(firsts))

    @property
    def number(self) -> int:
        """How many there are."""
        return DITHER_LEVELS * len(self.used)

    def count_(self, part: slice, dither: Dither) -> None:
        """Add the eighths of some of the dither."""
        if _DITHERS is not None and IS_COMPILED:
            _DITHERS.label(self.labels[part], *dither.state_before(part))
        else:
            self.add_(part, dither.of_part(part))

    def add_(self, part: slice, numbers: NDArray[np.uint32]) -> None:
        """Add the eighths of some numbers."""
        self.labels[part] += (numbers >> _LEVEL_SHIFT).astype(np.uint8)


class _Rounding:
    """Rounding of a message's values under dither, which counts what their densities follow from."""

    def __init__(self, step: np.float32, dither: Dither, contexts: _Contexts) -> None:
        self._step = step
        self._dither = dither
        self.contexts = contexts
        self._counts = np.zeros(len(contexts.used) * NUM_CELLS, dtype=np.int64)

    def integers(self, exact: NDArray[np.float32]) -> Iterator[NDArray[np.int32]]:
        """Yield the integers, some at a time."""
        stride = _STRIDE if len(exact) > _LONG else 1
        for part in parts_of(len(exact)):
            if _DITHERS is not None and IS_COMPILED:
                found = np.empty(part.stop - part.start, dtype=np.int32)
                own, labels = np.ascontiguousarray(exact[part]), self.contexts.labels[part]
                _DITHERS.dither(found, labels, self._counts, own, *self._dither.state_before(part), self._step, stride)
                yield found
                continue
            steps = exact[part] / self._step
            dither = self._dither.of_part(part)
            some = slice(None, None, stride)
            cells = np.abs(steps[some]) * np.float32(DITHER_LEVELS)
            np.minimum(cells, np.float32(NUM_CELLS - 1), out=cells)
            firsts = self.contexts.labels[part][some].astype(np.int32) * np.int32(NUM_CELLS // DITHER_LEVELS)
            self._counts += np.bincount(cells.astype(np.int32) + firsts, minlength=len(self._counts))
            self.contexts.add_(part, dither)
            steps += dither.astype(np.float32) * _UNIT
            np.floor(steps, out=steps)
            yield np.clip(steps, -LARGEST_INTEGER, LARGEST_INTEGER).astype(np.int32)

    def densities(self) -> tuple[list[list[int]], NDArray[np.int64]]:
        """The levels of the classes' densities, and the frequencies of all contexts, int64 [8 K, 256]."""
        levels = [fit_density(counts) for counts in self._counts.reshape(-1, NUM_CELLS)]
        return levels, np.concatenate([frequencies_by_dither(row) for row in levels])
