"""An entropy coder for small signed integers whose spread depends on a context that both sides know.

It is rANS (Duda 2013, "Asymmetric numeral systems", arXiv:1311.2540) with frequencies that are fixed within a
message and described by one to sixteen bytes per context. A short message is one state in plain Python; a long one is
many interleaved states ("lanes"), one NumPy operation for all of them at a time. Both sides compute with integers
only, so that every platform decodes the same. `docs/wire-format.md` has the layout of the bytes.

The distribution of a context is given by its hazards h_m = P(|v| = m | |v| >= m), one per segment of magnitudes, in
logarithmic steps of the odds: a last hazard that goes on for ever is a geometric tail, one byte more is a probability
of zero of its own, and a few more follow any other shape. Their maximum-likelihood estimates are quotients of counts.

Chosen by measurement. Bytes for quantised Laplace values of 0.7 bits in six contexts, and seconds for encoding plus
decoding 10 million of them on one core, in runs of a context and in no order (the best of three, one package after the
other):

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

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from spatl.channels.vectors import parts_of
from spatl.errors import UpdateRejected

MAX_CONTEXTS: Final = 32
LARGEST_INTEGER: Final = 2**23 - 1

# A lane costs three bytes, and fewer lanes more time: the sender takes as many as a hundredth of the bytes allows, with
# 2048 to 8192 values in each. Below so many values the plain loop does, and one lane is all it needs.
_VALUES_OF_ONE_LANE: Final = 1 << 17
_LANE_BITS: Final = range(11, 14)
_BITS_PER_LANE: Final = 24
_SHARE_OF_LANES: Final = 0.01

_TOTAL_BITS: Final = 14
_TOTAL: Final = 1 << _TOTAL_BITS
_WORD_BITS: Final = 16
_LOWEST_STATE: Final = 1 << _WORD_BITS
_STATE_BITS: Final = 2 * _WORD_BITS

# The same for arithmetic with arrays, made once.
_LOWEST: Final = np.uint32(_LOWEST_STATE)
_SLOT: Final = np.uint32(_TOTAL - 1)
_SLOT_BITS: Final = np.uint32(_TOTAL_BITS)
_WORD: Final = np.uint32(_WORD_BITS)
_FREQUENCY_FROM: Final = np.uint32(8)
_OFFSET_FROM: Final = np.uint64(32)

# A symbol is a value as an int8, read as a uint8; the one that is no value's stands for all that has no frequency.
_SYMBOL_BITS: Final = 8
_LARGEST_SYMBOL: Final = 127
_ESCAPE: Final = 128
_ESCAPE_BYTES: Final = 3

_KNOTS: Final = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96)
_SEGMENT_OF_MAGNITUDE: Final = np.searchsorted(_KNOTS, np.arange(_LARGEST_SYMBOL + 1), side="right") - 1
_LAST_LEVEL: Final = 0x80
_LEVELS: Final = np.arange(_LAST_LEVEL)
_LEVELS_PER_OCTAVE: Final = 6
_ODDS: Final = (_LEVELS_PER_OCTAVE + _LEVELS % _LEVELS_PER_OCTAVE) << (_LEVELS // _LEVELS_PER_OCTAVE)
_EVEN_ODDS: Final = _LEVELS_PER_OCTAVE << 8
_MASS_BITS: Final = 32

_BITS_IF_HIT: Final = np.log2(1 + _EVEN_ODDS / _ODDS)
_BITS_IF_MISSED: Final = np.log2(1 + _ODDS / _EVEN_ODDS)


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
            if largest > _LARGEST_SYMBOL:
                escaped = np.abs(values) > _LARGEST_SYMBOL
                escapes.append(values[escaped])
                values = np.where(escaped, _ESCAPE, values)
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
            first, last = np.searchsorted(self._places, (part.start, part.stop))
            values[self._places[first:last] - part.start] = self.escapes[first:last]
        return values

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """Where escapes stand, int64 [E]."""
        found = [part.start + np.flatnonzero(self.symbols[part] == _ESCAPE) for part in parts_of(len(self.symbols))]
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
    number = len(integers)
    if number == 0:
        return b""
    first_cells = _rank_of_context(used) << np.uint16(_SYMBOL_BITS)
    cells = np.empty(number, dtype=np.uint16)
    flat_counts = np.zeros(len(used) << _SYMBOL_BITS, dtype=np.int64)
    for part in parts_of(number):
        np.bitwise_or(first_cells.take(contexts[part]), integers.symbols[part], out=cells[part])
        flat_counts += np.bincount(cells[part], minlength=len(flat_counts))
    counts = flat_counts.reshape(len(used), -1)
    levels = [_fit_levels(row) for row in counts]
    frequencies = np.stack([_frequencies(row) for row in levels])
    replaced = _escapes_of_absent(counts, frequencies)
    escapes = []
    for part, values in integers.parts():
        if replaced is not None:
            cells[part] = replaced.take(cells[part])
        escapes.append(values[(cells[part] & np.uint16((1 << _SYMBOL_BITS) - 1)) == _ESCAPE])
    if number < _VALUES_OF_ONE_LANE:
        lane_bits = b""
        states, words = _encode_one_lane(cells, frequencies)
    else:
        lane_bits = bytes([_fit_lanes(counts, frequencies)])
        states, words = _encode_lanes(cells, frequencies, num_lanes=number >> lane_bits[0])
    tables = [bytes([*row[:-1], row[-1] | _LAST_LEVEL]) for row in levels]
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
    num_lanes, data = _read_num_lanes(data, len(contexts))
    levels, start = _read_levels(data, len(used))
    end = start + 4 * num_lanes
    if len(data) < end:
        raise UpdateRejected(f"expected {num_lanes} states of coded integers, got {len(data) - start} bytes")
    states = np.frombuffer(data[start:end], dtype="<u4").astype(np.uint32)
    words = np.frombuffer(data[end : end + (len(data) - end) // 2 * 2], dtype="<u2")
    if num_lanes == 0:
        symbols, num_words = np.zeros(0, dtype=np.uint8), 0
    else:
        decode = _decode_lanes if num_lanes > 1 else _decode_one_lane
        frequencies = np.stack([_frequencies(row) for row in levels])
        ranks, rank_of_context = np.empty(len(contexts), dtype=np.uint16), _rank_of_context(used)
        for part in parts_of(len(contexts)):
            ranks[part] = rank_of_context.take(contexts[part])
        symbols, num_words = decode(states, words, ranks, frequencies)
    escaped = int(np.count_nonzero(symbols == _ESCAPE))
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
    probabilities = np.where(frequencies > 0, frequencies, _TOTAL) / _TOTAL
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
    return np.where(absent, cell[:, [_ESCAPE]], cell).ravel()


def _sign_extended(raw: memoryview) -> NDArray[np.int32]:
    """Read little-endian two's complement integers of three bytes."""
    padded = np.zeros((len(raw) // _ESCAPE_BYTES, 4), dtype=np.uint8)
    padded[:, 4 - _ESCAPE_BYTES :] = np.frombuffer(raw, dtype=np.uint8).reshape(-1, _ESCAPE_BYTES)
    return padded.view("<i4").ravel().astype(np.int32) >> 8 * (4 - _ESCAPE_BYTES)


# The distribution of a context.


def _read_levels(data: memoryview, num_contexts: int) -> tuple[list[list[int]], int]:
    """Read a context's levels up to the marked one, for each context, and return them and where they end."""
    levels: list[list[int]] = []
    position = 0
    for _ in range(num_contexts):
        row: list[int] = []
        while not row or row[-1] < _LAST_LEVEL:
            if position == len(data) or len(row) == len(_KNOTS):
                raise UpdateRejected("the hazards of coded integers have no end")
            row.append(data[position])
            position += 1
        row[-1] -= _LAST_LEVEL
        levels.append(row)
    return levels, position


def _frequencies(levels: list[int]) -> NDArray[np.int64]:
    """How often each symbol is expected in `_TOTAL`, int64 [256]; from integers only, as both sides must agree.

    The mass that is left at magnitude m loses its share h_m to that magnitude, half to either sign. Rounding the
    cumulated mass, not each part of it, leaves a rare symbol without a frequency only now and then.
    """
    odds = _ODDS[np.array(levels)[np.minimum(_SEGMENT_OF_MAGNITUDE, len(levels) - 1)]]
    left = 1 << _MASS_BITS
    masses = []
    for share in odds.tolist():
        mass = left * share // (share + _EVEN_ODDS)
        masses.append(mass)
        left -= mass
    cumulated = np.cumsum([0, *masses[1:]], dtype=np.int64) * (_TOTAL - 1)
    either_sign = np.diff(cumulated >> (_MASS_BITS + 1))
    zero = [masses[0] * (_TOTAL - 1) >> _MASS_BITS]
    escape = [_TOTAL - zero[0] - 2 * int(either_sign.sum())]
    return np.concatenate([zero, either_sign, escape, either_sign[::-1]])


def _fit_levels(counts: NDArray[np.int64]) -> list[int]:
    """The levels that take the fewest bits, those that describe them included.

    Args:
        counts: int64 [256], how often each symbol occurs.
    """
    magnitudes = counts[: _LARGEST_SYMBOL + 1].copy()
    magnitudes[1:] += counts[:_ESCAPE:-1]
    reached = magnitudes[::-1].cumsum()[::-1] + counts[_ESCAPE]
    hits = np.add.reduceat(magnitudes, _KNOTS)
    misses = np.add.reduceat(reached, _KNOTS) - hits
    best: list[int] = []
    best_bits = np.inf
    levels: list[int] = []
    bits = 0.0
    for segment in range(len(_KNOTS)):
        level, bits_of_rest = _fit_level(hits[segment:].sum(), misses[segment:].sum())
        levels.append(level)
        if bits + bits_of_rest + 8 * len(levels) < best_bits:
            best, best_bits = levels.copy(), bits + bits_of_rest + 8 * len(levels)
        levels[-1], bits_of_segment = _fit_level(hits[segment], misses[segment])
        bits += bits_of_segment
    return best


def _fit_level(hits: int, misses: int) -> tuple[int, float]:
    """The level of a hazard that held `hits` times and did not `misses` times, and the bits of telling which."""
    bits = hits * _BITS_IF_HIT + misses * _BITS_IF_MISSED
    level = int(bits.argmin())
    return level, float(bits[level])


# The states. Encoding goes from the last value to the first, so that decoding goes from the first to the last.


def _encode_one_lane(
    cells: NDArray[np.uint16], frequencies: NDArray[np.int64]
) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """What `_encode_lanes` does, for one lane."""
    frequency = frequencies.ravel().tolist()
    start = _starts(frequencies).tolist()
    words: list[int] = []
    state = _LOWEST_STATE
    for cell in cells[::-1].tolist():
        if state >= frequency[cell] << (_STATE_BITS - _TOTAL_BITS):
            words.append(state & (_LOWEST_STATE - 1))
            state >>= _WORD_BITS
        quotient, remainder = divmod(state, frequency[cell])
        state = (quotient << _TOTAL_BITS) + start[cell] + remainder
    return np.array([state], dtype=np.uint32), np.array(words[::-1], dtype=np.uint16)


def _decode_one_lane(
    states: NDArray[np.uint32], words: NDArray[np.uint16], ranks: NDArray[np.uint16], frequencies: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], int]:
    """What `_decode_lanes` does, for one lane."""
    frequency = frequencies.ravel().tolist()
    start = _starts(frequencies).tolist()
    symbol_of_slot = _symbol_of_slot(frequencies).tobytes()
    symbols = bytearray()
    position = 0
    state = int(states[0])
    for rank in ranks.tolist():
        slot = state & (_TOTAL - 1)
        symbol = symbol_of_slot[rank << _TOTAL_BITS | slot]
        symbols.append(symbol)
        cell = rank << _SYMBOL_BITS | symbol
        state = frequency[cell] * (state >> _TOTAL_BITS) + slot - start[cell]
        if state < _LOWEST_STATE:
            if position == len(words):
                raise UpdateRejected("the coded integers are cut off")
            state = state << _WORD_BITS | int(words[position])
            position += 1
    if state != _LOWEST_STATE:
        raise UpdateRejected("the coded integers do not end as they began")
    return np.frombuffer(symbols, dtype=np.uint8), position


def _encode_lanes(
    cells: NDArray[np.uint16], frequencies: NDArray[np.int64], *, num_lanes: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """Encode symbols, the i-th in lane i mod L.

    Args:
        cells: uint16 [V], rank of the context and symbol.
        frequencies: int64 [K, 256], of each symbol in each context.
        num_lanes: L.

    Returns:
        The lanes' last states, uint32 [L], and the words they shed, uint16 [W], in the order of decoding.
    """
    frequency = frequencies.ravel().astype(np.uint32)
    start = _starts(frequencies)
    full_from, total = np.uint32(_STATE_BITS - _TOTAL_BITS), np.uint32(_TOTAL)
    lanes = np.full(num_lanes, _LOWEST_STATE, dtype=np.uint32)
    words = np.empty(len(cells), dtype=np.uint16)
    position = len(words)
    for first in range((len(cells) - 1) // num_lanes * num_lanes, -1, -num_lanes):
        cell = cells[first : first + num_lanes].astype(np.intp)
        state = lanes[: len(cell)]
        own = frequency.take(cell)
        full = (state >> full_from) >= own
        shed = state[full]
        position -= len(shed)
        words[position : position + len(shed)] = shed.astype(np.uint16)
        state >>= full * _WORD
        # quotient * _TOTAL + remainder, for which the quotient is enough
        quotient = state // own
        quotient *= total - own
        state += quotient
        state += start.take(cell)
    return lanes, words[position:]


def _decode_lanes(
    states: NDArray[np.uint32], words: NDArray[np.uint16], ranks: NDArray[np.uint16], frequencies: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], int]:
    """Decode symbols; no state leaves 32 bits, whatever the bytes were.

    Args:
        states: uint32 [L], which is used up.
        words: uint16 [W], or more.
        ranks: uint16 [V], the rank of each symbol's context.
        frequencies: int64 [K, 256].

    Returns:
        uint8 [V] and the number of words that were read.

    Raises:
        UpdateRejected: There are too few words, or a lane does not end in the state in which encoding began.
    """
    num_lanes = len(states)
    table = _table_of_slots(frequencies)
    symbols = np.empty(len(ranks), dtype=np.uint8)
    position = 0
    for first, slots in zip(range(0, len(ranks), num_lanes), _first_slots(ranks, num_lanes), strict=True):
        state = states[: len(ranks) - first]
        slot = (state & _SLOT).astype(np.intp)
        slot += slots
        found = table.take(slot)
        symbols[first : first + num_lanes] = found  # its lowest eight bits
        state >>= _SLOT_BITS
        state *= found.astype(np.uint32) >> _FREQUENCY_FROM
        state += (found >> _OFFSET_FROM).astype(np.uint32)
        low = np.flatnonzero(state < _LOWEST)
        taken = words[position : position + len(low)]
        if len(taken) < len(low):
            raise UpdateRejected("the coded integers are cut off")
        state[low] = (state[low] << _WORD) | taken
        position += len(low)
    if (states != _LOWEST_STATE).any():
        raise UpdateRejected("the coded integers do not end as they began")
    return symbols, position


def _first_slots(ranks: NDArray[np.uint16], num_lanes: int) -> Iterator[int | NDArray[np.intp]]:
    """Where the slots of the contexts of each step begin: one number where all of a step's are alike, as most are."""
    differs = np.append(ranks[1:] != ranks[:-1], False)
    differs[num_lanes - 1 :: num_lanes] = False  # from the next step's
    mixed = np.logical_or.reduceat(differs, np.arange(0, len(ranks), num_lanes))
    for step, (rank, is_mixed) in enumerate(zip(ranks[::num_lanes].tolist(), mixed.tolist(), strict=True)):
        if is_mixed:
            yield ranks[step * num_lanes : (step + 1) * num_lanes].astype(np.intp) << _TOTAL_BITS
        else:
            yield rank << _TOTAL_BITS


def _table_of_slots(frequencies: NDArray[np.int64]) -> NDArray[np.uint64]:
    """uint64 [K * _TOTAL]: each slot's symbol, from bit 8 its frequency, from bit 32 how far it is from the first."""
    table = np.empty(frequencies.shape[0] << _TOTAL_BITS, dtype=np.uint64)
    for rank, row in enumerate(frequencies):
        symbols = _symbol_of_slot(row[None])
        offsets = np.arange(_TOTAL) - _starts(row[None])[symbols]
        table[rank << _TOTAL_BITS : (rank + 1) << _TOTAL_BITS] = symbols | row[symbols] << 8 | offsets << 32
    return table


def _starts(frequencies: NDArray[np.int64]) -> NDArray[np.uint32]:
    """uint32 [K * 256], the first slot of each symbol."""
    return (frequencies.cumsum(axis=1) - frequencies).ravel().astype(np.uint32)


def _symbol_of_slot(frequencies: NDArray[np.int64]) -> NDArray[np.uint8]:
    """uint8 [K * _TOTAL], the symbol that each slot belongs to."""
    symbols = np.tile(np.arange(frequencies.shape[1], dtype=np.uint8), len(frequencies))
    return symbols.repeat(frequencies.ravel())
