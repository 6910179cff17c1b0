"""The compiled coder: the same bytes, integers and refusals as NumPy's, whatever is asked of it."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatl.errors import UpdateRejected
from spatl.extensions.compiled import NO_EXTENSION
from spatl.wire import coder
from spatl.wire.distributions import ESCAPE, frequencies_of
from spatl.wire.lanes import LOWEST_STATE, SYMBOL_BITS, TOTAL

compiled = pytest.mark.skipif(not coder.IS_COMPILED, reason="this installation has no compiled coder")

levels = st.lists(st.lists(st.integers(0, 127), min_size=1, max_size=16), min_size=1, max_size=4)
seeds = st.integers(0, 2**32 - 1)
numbers_of_lanes = st.integers(1, 40)


def message(rows: list[list[int]], length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells that have a frequency, as often as it says, uint16 [length]; and the frequencies, int64 [K, 256]."""
    frequencies = np.stack([frequencies_of(row) for row in rows])
    rng = np.random.default_rng(seed)
    ranks = rng.integers(0, len(rows), length)
    drawn = [rng.choice(1 << SYMBOL_BITS, p=frequencies[rank] / TOTAL) for rank in ranks]
    return (ranks << SYMBOL_BITS | np.array(drawn, dtype=np.int64)).astype(np.uint16), frequencies


def outcome(decode, states, words, ranks, frequencies):
    """What one of the coders makes of a message: symbols and words read, or its refusal."""
    try:
        symbols, taken = decode(states.copy(), words, ranks, frequencies)
    except UpdateRejected as refusal:
        return str(refusal)
    return symbols.tolist(), taken


@compiled
@given(rows=levels, length=st.integers(1, 120), num_lanes=numbers_of_lanes, seed=seeds)
def test_both_write_the_same_words_and_read_them_back(rows, length, num_lanes, seed):
    cells, frequencies = message(rows, length, seed)
    num_lanes = min(num_lanes, length)
    states, words = coder.encode(cells, frequencies, num_lanes=num_lanes)
    again, other = coder.encode_by_numpy(cells, frequencies, num_lanes=num_lanes)
    assert (states.tolist(), words.tolist()) == (again.tolist(), other.tolist())
    for decode in (coder.decode, coder.decode_by_numpy):
        symbols, taken = decode(states.copy(), words, cells >> SYMBOL_BITS, frequencies)
        assert symbols.tolist() == (cells & (2**SYMBOL_BITS - 1)).tolist()
        assert taken == len(words)


@compiled
@given(rows=levels, num_lanes=numbers_of_lanes, data=st.binary(max_size=120), offset=st.integers(0, 1), seed=seeds)
def test_both_make_the_same_of_hostile_bytes(rows, num_lanes, data, offset, seed):
    """States below the lowest, words that begin at an odd byte, too few or too many of them."""
    frequencies = np.stack([frequencies_of(row) for row in rows])
    rng = np.random.default_rng(seed)
    states = rng.integers(0, 2**32, num_lanes, dtype=np.uint32) >> rng.integers(0, 32, num_lanes, dtype=np.uint32)
    ranks = rng.integers(0, len(rows), int(rng.integers(num_lanes, 200))).astype(np.uint16)
    words = np.frombuffer(data[offset:][: len(data[offset:]) // 2 * 2], dtype="<u2")
    found = [outcome(decode, states, words, ranks, frequencies) for decode in (coder.decode, coder.decode_by_numpy)]
    assert found[0] == found[1]


@compiled
@given(rows=levels, length=st.integers(1, 120), num_lanes=numbers_of_lanes, place=st.integers(0), seed=seeds)
def test_both_make_the_same_of_a_message_with_one_bit_turned(rows, length, num_lanes, place, seed):
    cells, frequencies = message(rows, length, seed)
    states, words = coder.encode(cells, frequencies, num_lanes=min(num_lanes, length))
    raw = bytearray(states.tobytes() + words.tobytes())
    raw[place // 8 % len(raw)] ^= 1 << place % 8
    states = np.frombuffer(raw[: 4 * len(states)], dtype=np.uint32)
    words = np.frombuffer(raw[4 * len(states) :], dtype=np.uint16)
    ranks = cells >> SYMBOL_BITS
    found = [outcome(decode, states, words, ranks, frequencies) for decode in (coder.decode, coder.decode_by_numpy)]
    assert found[0] == found[1]


@compiled
@pytest.mark.parametrize(
    ("cells", "reason"), [([256], "has no frequency"), ([1], "has no frequency"), ([65535], "has no frequency")]
)
def test_a_cell_without_a_frequency_is_refused_before_anything_is_divided_by_it(cells, reason):
    frequencies = np.zeros((1, 256), dtype=np.int64)
    frequencies[0, [0, ESCAPE]] = TOTAL - 1, 1
    with pytest.raises(ValueError, match=reason):
        coder.encode(np.array(cells, dtype=np.uint16), frequencies, num_lanes=1)


@compiled
def test_what_no_caller_hands_over_is_refused_and_touches_no_memory():
    """Frequencies that do not make one, a context beyond the last, no lanes."""
    states, words = np.array([LOWEST_STATE], dtype=np.uint32), np.zeros(0, dtype=np.uint16)
    whole, ranks = np.zeros((1, 256), dtype=np.int64), np.zeros(3, dtype=np.uint16)
    whole[0, [0, ESCAPE]] = TOTAL - 1, 1
    for wrong in (whole // 2, whole * 5, np.zeros((0, 256), dtype=np.int64)):
        with pytest.raises(ValueError, match=r"do not make one|no such context"):
            coder.decode(states.copy(), words, ranks, wrong)
    with pytest.raises(ValueError, match="no such context"):
        coder.decode(states.copy(), words, ranks + np.uint16(1), whole)
    with pytest.raises(ValueError, match="no room"):
        coder.decode(states[:0].copy(), words, ranks, whole)
    with pytest.raises(ValueError, match="no room"):
        coder.encode(ranks, whole, num_lanes=0)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["1", ""])
def test_the_environment_says_whether_numpy_does_it(value, monkeypatch):
    monkeypatch.setenv(NO_EXTENSION, value)
    code = "from spatl.wire.coder import IS_COMPILED; print(IS_COMPILED)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == str(coder.IS_COMPILED and not value)
