"""The codec `powersgd`: each weight matrix as a product of two thin ones, P Q^T, found by one step of power iteration.

PowerSGD (Vogels, Karimireddy, Jaggi 2019, arXiv 1905.13727, algorithm 1): with Q as the sender's last message had it
(warm start), P = M Q is made orthonormal, and Q = M^T P; what P Q^T lacks of M goes into the sender's next update
(`feeds_back`). A convolution is the matrix of its output channels by everything else; vectors are sent whole.

What differs: workers there sum P, and then Q, over all in two exchanges. A client has one message, so that each has a
P and Q of its own, and what is averaged are the products. The numbers are float16 of a scale; what that loses is fed
back like the rest. A matrix whose factors would be no shorter is sent whole.

Layout of the bytes: for each matrix [R, L], in order, P [R, r] by rows and Q [L, r] by rows, each as float16 of its
largest (`spatl.wire.packing`) | all other values likewise. r is the rank. Nothing at all for no values.
"""

import itertools
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.channels.layout import Places
from spatl.wire.codec import Codec, check_length
from spatl.wire.packing import halves_bytes, halves_length, read_halves

_SCALES: Final = 4  # what a matrix's two scales are in numbers of two bytes
_FEWEST: Final = 9  # values of a matrix that pays: R + L + 4 < R L


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
        exact, matrices = values.detach().cpu().numpy(), self._matrices(places)
        written: list[bytes] = []
        sent = [np.zeros(0, dtype=np.float32)]
        for matrix, start in zip(matrices, self._starts(matrices, memory.numpy(), generator), strict=True):
            factors = self._factors(exact[matrix.part].reshape(matrix.shape).astype(np.float64), start)
            written += map(halves_bytes, factors)
            sent.append(factors[1].astype(np.float32))
        rest = exact[_others(matrices, len(exact))]
        return b"".join([*written, halves_bytes(rest)] if len(exact) else []), torch.from_numpy(np.concatenate(sent))

    def decode(self, data: memoryview, places: Places) -> Tensor:
        """Multiply the factors, a rank after the other, so that every platform rounds alike."""
        values, matrices = np.zeros(len(places), dtype=np.float32), self._matrices(places)
        others = _others(matrices, len(values))
        factors = sum(halves_length(self.rank * side) for matrix in matrices for side in matrix.shape)
        check_length(data, factors + halves_length(int(others.sum())) if len(values) else 0, self.name)
        for matrix in matrices:
            sides = []
            for side in matrix.shape:
                numbers, data = read_halves(data, self.rank * side, self.name)
                sides.append(numbers.reshape(side, self.rank).T)
            product = values[matrix.part].reshape(matrix.shape)  # a view
            for rows, columns in zip(*sides, strict=True):
                product += rows[:, None] * columns[None, :]
        if len(values):
            values[others], _ = read_halves(data, int(others.sum()), self.name)
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

    def _matrices(self, places: Places) -> list["_Matrix"]:
        """Runs of a tensor's values that are as many of each of several channels, one after the other, and pay."""
        channels, lengths = places.channels.numpy(), places.runs[1].numpy()
        ends, found = lengths.cumsum(), []
        for index in np.flatnonzero(lengths >= _FEWEST):
            part = slice(int(ends[index] - lengths[index]), int(ends[index]))
            own = channels[part]
            last = np.flatnonzero(np.append(own[1:] != own[:-1], True))
            rows, columns = len(last), len(own) // len(last)
            even = bool((np.diff(last, prepend=-1) == columns).all())
            shorter = self.rank * (rows + columns) + _SCALES < rows * columns
            if even and shorter and self.rank <= min(rows, columns):
                found.append(_Matrix(part, (rows, columns)))
        return found

    def _starts(
        self, matrices: list["_Matrix"], memory: NDArray[np.float32], generator: torch.Generator
    ) -> list[NDArray[np.float64]]:
        """Q to begin with, float64 [L, r], of each matrix: as sent last, or random where that was of others."""
        columns = [matrix.shape[1] for matrix in matrices]
        if len(memory) != self.rank * sum(columns) or not np.isfinite(memory).all():
            memory = torch.rand(self.rank * sum(columns), generator=generator).numpy() - np.float32(0.5)
        ends = self.rank * np.cumsum([0, *columns])
        return [memory[a:b].astype(np.float64).reshape(-1, self.rank) for a, b in itertools.pairwise(ends)]


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
class _Matrix:
    """Where a matrix's values are in a message, and how many rows and columns it has."""

    part: slice
    shape: tuple[int, int]


def _others(matrices: list[_Matrix], number: int) -> NDArray[np.bool_]:
    """Return which of so many values are of no matrix, bool [V]."""
    others = np.ones(number, dtype=np.bool_)
    for matrix in matrices:
        others[matrix.part] = False
    return others
