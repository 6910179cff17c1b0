"""The codec `powersgd`: each weight matrix as a product of two thin ones, P Q^T, found by one step of power iteration.

PowerSGD (Vogels, Karimireddy, Jaggi 2019, arXiv 1905.13727, algorithm 1): with Q as the sender's last message had it
(warm start), P = M Q is made orthonormal, and Q = M^T P; what P Q^T lacks of M goes into the sender's next update
(`feeds_back`). A convolution is the matrix of its output channels by everything else; vectors are sent whole.

What differs: workers there sum P, and then Q, over all in two exchanges. A client has one message, so that each has a
P and Q of its own, and what is averaged are the products. The numbers are float16 of a scale; what that loses is fed
back like the rest. A matrix whose factors would be no shorter is sent whole.

Layout of the bytes, for one tensor after the other: of a matrix [R, L], P as float16 of its largest
(`spatl.wire.packing`), [R, r] by rows | Q likewise, [L, r]; of all others, their values likewise. r is the rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.channels.layout import Places
from spatl.wire.codec import Codec, check_length
from spatl.wire.packing import halves_bytes, halves_length, read_halves


class _LowRank(Codec):
    name: str
    number: int
    relative = True
    feeds_back = True
    rank: int

    def num_bytes(self, *, num_values: int, num_channels: int) -> int:
        """Most that it can be, every value whole."""
        return 2 * num_values + 4 * num_channels

    def encode(
        self, values: Tensor, places: Places, *, generator: torch.Generator, max_bytes: int | None = None
    ) -> bytes:
        """Encode from a random start."""
        return self.encode_with_memory(values, places, generator=generator, memory=torch.zeros(0))[0]

    def encode_with_memory(
        self, values: Tensor, places: Places, *, generator: torch.Generator, memory: Tensor,
        max_bytes: int | None = None,
    ) -> tuple[bytes, Tensor]:  # fmt: skip
        """Encode from the factors Q that were sent last, one after the other, and return those sent now."""
        exact, shapes = values.detach().cpu().numpy(), list(self._shapes(places))
        starts = self._starts(shapes, memory.numpy(), generator)
        written, sent = [], [np.zeros(0, dtype=np.float32)]
        for shape in shapes:
            own = exact[shape.part]
            if not shape.is_matrix:
                written.append(halves_bytes(own))
                continue
            factors = self._factors(own.reshape(shape.rows, shape.columns).astype(np.float64), next(starts))
            written += map(halves_bytes, factors)
            sent.append(factors[1].astype(np.float32))
        return b"".join(written), torch.from_numpy(np.concatenate(sent))

    def decode(self, data: memoryview, places: Places) -> Tensor:
        """Multiply the factors, a rank after the other, so that every platform rounds alike."""
        shapes = list(self._shapes(places))
        check_length(data, sum(map(self._length, shapes)), self.name)
        values = np.zeros(len(places), dtype=np.float32)
        for shape in shapes:
            if not shape.is_matrix:
                values[shape.part], data = read_halves(data, shape.number, self.name)
                continue
            rows, data = read_halves(data, self.rank * shape.rows, self.name)
            columns, data = read_halves(data, self.rank * shape.columns, self.name)
            product = values[shape.part].reshape(shape.rows, shape.columns)  # a view
            for left, right in zip(rows.reshape(-1, self.rank).T, columns.reshape(-1, self.rank).T, strict=True):
                product += left[:, None] * right[None, :]
        return torch.from_numpy(values)

    def _factors(
        self, matrix: NDArray[np.float64], start: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """P and Q of a matrix, by rows; NaN of one that is not finite, which is refused."""
        if not np.isfinite(matrix).all():
            return np.full(self.rank * len(matrix), np.nan), np.full(start.size, np.nan)
        rows = np.linalg.qr(matrix @ start)[0].ravel()
        seen, _ = read_halves(memoryview(halves_bytes(rows)), len(rows), self.name)
        return rows, (matrix.T @ seen.reshape(len(matrix), self.rank)).ravel()

    def _shapes(self, places: Places) -> Iterator["_Shape"]:
        """What each run of a tensor's values is: a matrix if they are as many of each of its channels, in a row."""
        channels, start = places.channels.numpy(), 0
        for length in places.runs[1].tolist():
            own, stop = channels[start : start + length], start + length
            ends = np.flatnonzero(np.append(own[1:] != own[:-1], True))
            rows, columns = len(ends), length // len(ends)
            even = bool((np.diff(ends, prepend=-1) == columns).all())
            shorter = self.rank * (rows + columns) + 2 < rows * columns  # two more bytes twice, of a scale
            is_matrix = even and shorter and self.rank <= min(rows, columns)
            yield _Shape(slice(start, stop), rows, columns, is_matrix)
            start = stop

    def _length(self, shape: "_Shape") -> int:
        if shape.is_matrix:
            return halves_length(self.rank * shape.rows) + halves_length(self.rank * shape.columns)
        return halves_length(shape.number)

    def _starts(
        self, shapes: list["_Shape"], memory: NDArray[np.float32], generator: torch.Generator
    ) -> Iterator[NDArray[np.float64]]:
        """Q to begin with, float64 [L, r], of each matrix: as sent last, or random where that was of others."""
        columns = [shape.columns for shape in shapes if shape.is_matrix]
        if len(memory) != self.rank * sum(columns) or not np.isfinite(memory).all():
            memory = torch.rand(self.rank * sum(columns), generator=generator).numpy() - np.float32(0.5)
        for own in np.split(memory.astype(np.float64), np.cumsum(columns)[:-1] * self.rank):
            yield own.reshape(-1, self.rank)


class PowerSGD(_LowRank):
    """Two columns for each matrix."""

    name = "powersgd"
    number = 19
    rank = 2


class PowerSGDRank1(_LowRank):
    """One column for each matrix."""

    name = "powersgd-rank1"
    number = 21
    rank = 1


@dataclass(frozen=True)
class _Shape:
    """Where a tensor's values are in a message, and how many they are of how many channels."""

    part: slice
    rows: int
    columns: int
    is_matrix: bool

    @property
    def number(self) -> int:
        return int(self.part.stop - self.part.start)
