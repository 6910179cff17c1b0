"""An entropy coder for small signed integers whose spread depends on a context that both sides know.

It is rANS (Duda 2013, "Asymmetric numeral systems", arXiv:1311.2540) with frequencies that are fixed within a
message and described by one to sixteen bytes per context. A short message is one state, in plain Python; a long one is
many interleaved states ("lanes"), one NumPy operation for all of them at a time; the compiled coder of an installation
that has one (`spatl.wire.coder`) does either. Both sides compute with integers only, so that every platform decodes
the same. `docs/wire-format.md` has the layout of the bytes.

The distribution of a context is given by its hazards h_m = P(|v| = m | |v| >= m), one per segment of magnitudes, in
logarithmic steps of the odds: a last hazard that goes on for ever is a geometric tail, one byte more is a probability
of zero of its own, and a few more follow any other shape. Their maximum-likelihood estimates are quotients of counts.

Chosen by measurement, before there was a compiled coder. Bytes for quantised Laplace values of 0.7 bits in six
contexts, and seconds for encoding plus decoding 10 million of them on one core, in runs of a context and in no order
(the best of three, one package after the other):

| values                                       |  2,000 |  20,000 |  300,000 | in runs | in no order |
|----------------------------------------------|-------:|--------:|---------:|--------:|------------:|
| empirical entropy, without tables            |    189 |   1,755 |   26,891 |         |             |
| this module                                  |    202 |   1,770 |   27,133 |    0.18 |        0.25 |
| constriction's AnsCoder, its table at a byte |        |         |          |         |             |
| per context and symbol                       |    216 |   1,793 |   26,937 |    0.32 |        0.52 |
| deflate of two values a byte                 |    357 |   3,025 |   45,205 |         |        0.28 |

The package is compiled, and smaller for very long messages by what the lanes take, but its tables would have to be made
and sent by us all the same, and cost most where messages are short. A geometric distribution with a probability of zero
of its own (two bytes a context) takes 1.4 % more than hazards as needed on 300,000 normal values of int4, the same on
Laplace ones.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from spatl.channels.vectors import parts_of
from spatl.errors import UpdateRejected
from spatl.wire.coder import decode, encode
from spatl.wire.distributions import ESCAPE, LARGEST_SYMBOL, LAST_LEVEL, fit_levels, frequencies_of, read_levels
from spatl.wire.lanes import SYMBOL_BITS, TOTAL

Fitted = Callable[[NDArray[np.int64]], tuple[list[list[int]], NDArray[np.int64]]]

MAX_CONTEXTS: Final = 32

LARGEST_INTEGER: Final = 2**23 - 1


# A lane costs three bytes, and fewer lanes more time: the sender takes as many as a hundredth of the bytes allows, with
# 2048 to 8192 values in each. Below so many values the plain loop does, and one lane is all it needs.
_VALUES_OF_ONE_LANE: Final = 1 << 17

_LANE_BITS: Final = range(11, 14)

_BITS_PER_LANE: Final = 24

_SHARE_OF_LANES: Final = 0.01

_ESCAPE_BYTES: Final = 3


@dataclass(frozen=True, eq=False)
class Symbols:
    """Integers in a quarter of their memory: most are small.

    Attributes:
        symbols: uint8 [V], each integer as an int8, or an escape.
        escapes: int32 [E], the integers in whose place an escape stands, in order.
    """

    symbols: NDArray[np.uint8]
    escapes: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.symbols)

    @classmethod
    def of(cls, parts: Iterable[NDArray[np.int32]], length: int) -> Self:
        """So many integers, some of them at a time, at most `LARGEST_INTEGER` in magnitude.

        Raises:
            ValueError: One is larger.
        """
        symbols, escapes = np.empty(length, dtype=np.uint8), [np.zeros(0, dtype=np.int32)]
        position = 0
        for values in parts:
            largest = max(int(values.max(initial=0)), -int(values.min(initial=0)))
            if largest > LARGEST_INTEGER:
                raise ValueError(f"an integer must be at most {LARGEST_INTEGER} in magnitude, got {largest}")
            if largest > LARGEST_SYMBOL:
                escaped = np.abs(values) > LARGEST_SYMBOL
                escapes.append(values[escaped])
                values = np.where(escaped, ESCAPE, values)
            symbols[position : position + len(values)] = values.astype(np.uint8)
            position += len(values)
        return cls(symbols, np.concatenate(escapes))

    def parts(self) -> Iterator[tuple[slice, NDArray[np.int32]]]:
        """The integers, int32, some of them at a time."""
        for part in parts_of(len(self.symbols)):
            yield part, self.of_part(part)

    def of_part(self, part: slice) -> NDArray[np.int32]:
        """Some of the integers, int32."""
        symbols = self.symbols[part]
        values = symbols.view(np.int8).astype(np.int32)
        if len(self.escapes):
            values[symbols == ESCAPE] = self.escapes_in(part)
        return values

    def escapes_in(self, part: slice) -> NDArray[np.int32]:
        """Those of the escapes that some of the integers are, int32."""
        if not len(self.escapes):
            return self.escapes
        first, last = np.searchsorted(self._places, (part.start, part.stop))
        return self.escapes[first:last]

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """Return the places of escapes, int64 [E]."""
        found = [part.start + np.flatnonzero(self.symbols[part] == ESCAPE) for part in parts_of(len(self.symbols))]
        return np.concatenate(found)

    def integers(self) -> NDArray[np.int32]:
        """All of them, int32 [V]."""
        values = np.empty(len(self.symbols), dtype=np.int32)
        for part, own in self.parts():
            values[part] = own
        return values


def encode_integers(values: NDArray[np.int32], contexts: NDArray[np.uint8]) -> bytes:
    """Encode integers, best those within -127..127.

    Args:
        values: int32 [V], at most `LARGEST_INTEGER` in magnitude.
        contexts: uint8 [V], the class of each value, below `MAX_CONTEXTS`; the receiver knows them.

    Returns:
        The bytes, none for no values.

    Raises:
        ValueError: A value or a context is too large.
    """
    return encode_symbols(Symbols.of((values[part] for part in parts_of(len(values))), len(values)), contexts)


def encode_symbols(integers: Symbols, contexts: NDArray[np.uint8]) -> bytes:
    """Encode integers that are written as symbols; as `encode_integers`.

    Raises:
        ValueError: A context is too large.
    """
    used = _used_contexts(contexts)
    if len(integers) == 0:
        return b""

    def fitted(counts: NDArray[np.int64]) -> tuple[list[list[int]], NDArray[np.int64]]:
        levels = [fit_levels(row) for row in counts]
        return levels, np.stack([frequencies_of(row) for row in levels])

    return encode_ranked(integers, contexts, len(used), fitted, rank_of_label=_rank_of_context(used))


def encode_ranked(
    integers: Symbols, labels: NDArray[np.uint8], num_ranks: int, fitted: Fitted, *,
    rank_of_label: NDArray[np.uint16] | None = None,
) -> bytes:  # fmt: skip
    """Encode integers, at least one, by distributions of the caller's.

    Args:
        integers: [V].
        labels: uint8 [V], what tells each one's distribution.
        num_ranks: K, how many distributions there are.
        fitted: Returns the levels that are written, and the frequencies, int64 [K, 256], of the counts of each
            distribution's symbols, int64 [K, 256].
        rank_of_label: uint16 [L], the position of a distribution among all, by label; None where that is the label.
    """
    number = len(integers)
    cells = np.empty(number, dtype=np.uint16)
    flat_counts = np.zeros(num_ranks << SYMBOL_BITS, dtype=np.int64)
    for part in parts_of(number):
        cells[part] = labels[part] if rank_of_label is None else rank_of_label.take(labels[part])
        cells[part] <<= np.uint16(SYMBOL_BITS)
        cells[part] |= integers.symbols[part]
        flat_counts += np.bincount(cells[part], minlength=len(flat_counts))
    counts = flat_counts.reshape(num_ranks, -1)
    levels, frequencies = fitted(counts)
    replaced = _escapes_of_absent(counts, frequencies)
    escapes = [integers.escapes]
    if replaced is not None:
        escapes = []
        for part, values in integers.parts():
            cells[part] = replaced.take(cells[part])
            escapes.append(values[(cells[part] & np.uint16((1 << SYMBOL_BITS) - 1)) == ESCAPE])
    if number < _VALUES_OF_ONE_LANE:
        lane_bits, num_lanes = b"", 1
    else:
        lane_bits = bytes([_fit_lanes(counts, frequencies)])
        num_lanes = number >> lane_bits[0]
    states, words = encode(cells, frequencies, num_lanes=num_lanes)
    tables = [bytes([*row[:-1], row[-1] | LAST_LEVEL]) for row in levels]
    raw = np.concatenate(escapes).astype("<i4").view(np.uint8).reshape(-1, 4)[:, :_ESCAPE_BYTES]
    return b"".join([lane_bits, *tables, states.astype("<u4").tobytes(), words.astype("<u2").tobytes(), raw.tobytes()])


def decode_integers(data: memoryview, contexts: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Decode what `encode_integers` wrote.

    Args:
        data: The received bytes.
        contexts: uint8 [V], as for `encode_integers`.

    Returns:
        int32 [V], at most 2^23 in magnitude.

    Raises:
        UpdateRejected: The bytes are not a message of V integers.
    """
    return decode_symbols(data, contexts).integers()


def decode_symbols(data: memoryview, contexts: NDArray[np.uint8]) -> Symbols:
    """Decode integers as `decode_integers` does, and return them as symbols."""
    used = _used_contexts(contexts)
    return decode_ranked(
        data, contexts, len(used), lambda levels: np.stack([frequencies_of(row) for row in levels]),
        rank_of_label=_rank_of_context(used),
    )  # fmt: skip


def decode_ranked(
    data: memoryview, labels: NDArray[np.uint8], num_tables: int,
    frequencies_of_levels: Callable[[list[list[int]]], NDArray[np.int64]], *,
    rank_of_label: NDArray[np.uint16] | None = None,
) -> Symbols:  # fmt: skip
    """Decode what `encode_ranked` wrote.

    Args:
        data: The received bytes.
        labels: As of `encode_ranked`.
        num_tables: How many rows of levels were written.
        frequencies_of_levels: Returns the frequencies, int64 [K, 256], that follow from them.
        rank_of_label: As of `encode_ranked`.

    Raises:
        UpdateRejected: The bytes are not a message of V integers.
    """
    num_lanes, data = _read_num_lanes(data, len(labels))
    levels, start = read_levels(data, num_tables)
    end = start + 4 * num_lanes
    if len(data) < end:
        raise UpdateRejected(f"expected {num_lanes} states of coded integers, got {len(data) - start} bytes")
    states = np.frombuffer(data[start:end], dtype="<u4").astype(np.uint32)
    words = np.frombuffer(data[end : end + (len(data) - end) // 2 * 2], dtype="<u2")
    if num_lanes == 0:
        symbols, num_words = np.zeros(0, dtype=np.uint8), 0
    else:
        ranks = np.empty(len(labels), dtype=np.uint16)
        for part in parts_of(len(labels)):
            ranks[part] = labels[part] if rank_of_label is None else rank_of_label.take(labels[part])
        symbols, num_words = decode(states, words, ranks, frequencies_of_levels(levels))
    escaped = int(np.count_nonzero(symbols == ESCAPE))
    raw = data[end + 2 * num_words :]
    if len(raw) != _ESCAPE_BYTES * escaped:
        raise UpdateRejected(f"expected {_ESCAPE_BYTES * escaped} bytes after the coded integers, got {len(raw)}")
    return Symbols(symbols, _sign_extended(raw))


def _used_contexts(contexts: NDArray[np.uint8]) -> NDArray[np.int64]:
    """int64 [K], ascending."""
    # Neighbours are mostly alike, so that the last of each run are few to count.
    is_last = np.append(contexts[1:] != contexts[:-1], True)[: len(contexts)]
    used = np.flatnonzero(np.bincount(contexts[is_last], minlength=1))
    if len(used) and used[-1] >= MAX_CONTEXTS:
        raise ValueError(f"a context must be below {MAX_CONTEXTS}, got {used[-1]}")
    return used


def _rank_of_context(used: NDArray[np.int64]) -> NDArray[np.uint16]:
    """uint16 [MAX_CONTEXTS], the position of each context among those in use."""
    rank = np.zeros(MAX_CONTEXTS, dtype=np.uint16)
    rank[used] = np.arange(len(used))
    return rank


def _fit_lanes(counts: NDArray[np.int64], frequencies: NDArray[np.int64]) -> int:
    """Binary logarithm of the values in a lane: the fewest that a hundredth of the bytes allows."""
    escapes = counts[frequencies == 0].sum()
    probabilities = np.where(frequencies > 0, frequencies, TOTAL) / TOTAL
    num_bits = float(-(counts * np.log2(probabilities)).sum()) + 8 * _ESCAPE_BYTES * float(escapes)
    num_values = int(counts.sum())
    for bits in _LANE_BITS:
        if _BITS_PER_LANE * (num_values >> bits) <= _SHARE_OF_LANES * num_bits:
            return bits
    return _LANE_BITS[-1]


def _read_num_lanes(data: memoryview, num_values: int) -> tuple[int, memoryview]:
    """The number of lanes, and the bytes that follow."""
    if num_values < _VALUES_OF_ONE_LANE:
        return min(num_values, 1), data
    if len(data) == 0 or data[0] not in _LANE_BITS:
        raise UpdateRejected(f"expected {_LANE_BITS[0]} to {_LANE_BITS[-1]} lane bits, got {bytes(data[:1]).hex()}")
    return num_values >> data[0], data[1:]


def _escapes_of_absent(counts: NDArray[np.int64], frequencies: NDArray[np.int64]) -> NDArray[np.uint16] | None:
    """uint16 [K * 256]: each cell, or its context's escape where its symbol has no frequency; None if none occurs."""
    absent = frequencies == 0
    if not counts[absent].any():
        return None
    cell = np.arange(absent.size, dtype=np.uint16).reshape(absent.shape)
    return np.where(absent, cell[:, [ESCAPE]], cell).ravel()


def _sign_extended(raw: memoryview) -> NDArray[np.int32]:
    """Read little-endian two's complement integers of three bytes."""
    padded = np.zeros((len(raw) // _ESCAPE_BYTES, 4), dtype=np.uint8)
    padded[:, 4 - _ESCAPE_BYTES :] = np.frombuffer(raw, dtype=np.uint8).reshape(-1, _ESCAPE_BYTES)
    return padded.view("<i4").ravel().astype(np.int32) >> 8 * (4 - _ESCAPE_BYTES)
