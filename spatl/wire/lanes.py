"""Lanes of rANS: integers as words, one after the other or many side by side (Duda 2013, arXiv 1311.2540)."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spatl.errors import UpdateRejected

TOTAL_BITS: Final = 14

TOTAL: Final = 1 << TOTAL_BITS

WORD_BITS: Final = 16

LOWEST_STATE: Final = 1 << WORD_BITS

STATE_BITS: Final = 2 * WORD_BITS

CUT_OFF: Final = "the coded integers are cut off"

ENDS_OTHERWISE: Final = "the coded integers do not end as they began"


# The same for arithmetic with arrays, made once.
_LOWEST: Final = np.uint32(LOWEST_STATE)

_SLOT: Final = np.uint32(TOTAL - 1)

_SLOT_BITS: Final = np.uint32(TOTAL_BITS)

_WORD: Final = np.uint32(WORD_BITS)

_FREQUENCY_FROM: Final = np.uint32(8)

_OFFSET_FROM: Final = np.uint64(32)


# A symbol is a value as an int8, read as a uint8; the one that is no value's stands for all that has no frequency.
SYMBOL_BITS: Final = 8


# The states. Encoding goes from the last value to the first, so that decoding goes from the first to the last.


def encode_one_lane(
    cells: NDArray[np.uint16], frequencies: NDArray[np.int64]
) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """Encode as `encode_lanes` does, in one lane."""
    frequency = frequencies.ravel().tolist()
    start = _starts(frequencies).tolist()
    words: list[int] = []
    state = LOWEST_STATE
    for cell in cells[::-1].tolist():
        if state >= frequency[cell] << (STATE_BITS - TOTAL_BITS):
            words.append(state & (LOWEST_STATE - 1))
            state >>= WORD_BITS
        quotient, remainder = divmod(state, frequency[cell])
        state = (quotient << TOTAL_BITS) + start[cell] + remainder
    return np.array([state], dtype=np.uint32), np.array(words[::-1], dtype=np.uint16)


def decode_one_lane(
    states: NDArray[np.uint32], words: NDArray[np.uint16], ranks: NDArray[np.uint16], frequencies: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], int]:
    """Decode as `decode_lanes` does, of one lane."""
    frequency = frequencies.ravel().tolist()
    start = _starts(frequencies).tolist()
    symbol_of_slot = _symbol_of_slot(frequencies).tobytes()
    symbols = bytearray()
    position = 0
    state = int(states[0])
    for rank in ranks.tolist():
        slot = state & (TOTAL - 1)
        symbol = symbol_of_slot[rank << TOTAL_BITS | slot]
        symbols.append(symbol)
        cell = rank << SYMBOL_BITS | symbol
        state = frequency[cell] * (state >> TOTAL_BITS) + slot - start[cell]
        if state < LOWEST_STATE:
            if position == len(words):
                raise UpdateRejected(CUT_OFF)
            state = state << WORD_BITS | int(words[position])
            position += 1
    if state != LOWEST_STATE:
        raise UpdateRejected(ENDS_OTHERWISE)
    return np.frombuffer(symbols, dtype=np.uint8), position


def encode_lanes(
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
    full_from, total = np.uint32(STATE_BITS - TOTAL_BITS), np.uint32(TOTAL)
    lanes = np.full(num_lanes, LOWEST_STATE, dtype=np.uint32)
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
        # quotient * TOTAL + remainder, for which the quotient is enough
        quotient = state // own
        quotient *= total - own
        state += quotient
        state += start.take(cell)
    return lanes, words[position:]


def decode_lanes(
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
            raise UpdateRejected(CUT_OFF)
        state[low] = (state[low] << _WORD) | taken
        position += len(low)
    if (states != LOWEST_STATE).any():
        raise UpdateRejected(ENDS_OTHERWISE)
    return symbols, position


def _first_slots(ranks: NDArray[np.uint16], num_lanes: int) -> Iterator[int | NDArray[np.intp]]:
    """Yield where the slots of the contexts of each step begin: one number where all of a step's are alike."""
    differs = np.append(ranks[1:] != ranks[:-1], False)
    differs[num_lanes - 1 :: num_lanes] = False  # from the next step's
    mixed = np.logical_or.reduceat(differs, np.arange(0, len(ranks), num_lanes))
    for step, (rank, is_mixed) in enumerate(zip(ranks[::num_lanes].tolist(), mixed.tolist(), strict=True)):
        if is_mixed:
            yield ranks[step * num_lanes : (step + 1) * num_lanes].astype(np.intp) << TOTAL_BITS
        else:
            yield rank << TOTAL_BITS


def _table_of_slots(frequencies: NDArray[np.int64]) -> NDArray[np.uint64]:
    """uint64 [K * TOTAL]: each slot's symbol, from bit 8 its frequency, from bit 32 how far it is from the first."""
    table = np.empty(frequencies.shape[0] << TOTAL_BITS, dtype=np.uint64)
    for rank, row in enumerate(frequencies):
        symbols = _symbol_of_slot(row[None])
        offsets = np.arange(TOTAL) - _starts(row[None])[symbols]
        table[rank << TOTAL_BITS : (rank + 1) << TOTAL_BITS] = symbols | row[symbols] << 8 | offsets << 32
    return table


def _starts(frequencies: NDArray[np.int64]) -> NDArray[np.uint32]:
    """uint32 [K * 256], the first slot of each symbol."""
    return (frequencies.cumsum(axis=1) - frequencies).ravel().astype(np.uint32)


def _symbol_of_slot(frequencies: NDArray[np.int64]) -> NDArray[np.uint8]:
    """uint8 [K * TOTAL], the symbol that each slot belongs to."""
    symbols = np.tile(np.arange(frequencies.shape[1], dtype=np.uint8), len(frequencies))
    return symbols.repeat(frequencies.ravel())
