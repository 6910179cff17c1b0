"""The entropy coder: what goes in comes out, close to the entropy, and nothing damaged does harm."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatl.errors import UpdateRejected
from spatl.wire.entropy import LARGEST_INTEGER, MAX_CONTEXTS, decode_integers, encode_integers

MANY = 1 << 17
"""From so many values on, a message has several lanes."""

integers = st.integers(-3, 3) | st.integers(-130, 130) | st.integers(-(2**20), 2**20)
pairs = st.lists(st.tuples(integers, st.integers(0, MAX_CONTEXTS - 1)), max_size=60)


def arrays(numbers: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([v for v, _ in numbers], dtype=np.int32), np.array([c for _, c in numbers], dtype=np.uint8)


def laplace(num_values: int, *, width: float = 0.2, num_contexts: int = 6, seed: int = 0):
    """Quantised Laplace values, 1.6 times as wide in each next context; 0.7 bits a value by default."""
    rng = np.random.default_rng(seed)
    contexts = rng.integers(0, num_contexts, num_values).astype(np.uint8)
    values = np.rint(rng.laplace(size=num_values) * width * 1.6 ** (contexts - (num_contexts - 1) / 2))
    return values.astype(np.int32), contexts


def normal(num_values: int, *, width: float, largest: int):
    rng = np.random.default_rng(0)
    values = np.rint(rng.normal(size=num_values) * width).clip(-largest, largest)
    return values.astype(np.int32), np.zeros(num_values, dtype=np.uint8)


def empirical_entropy_bytes(values: np.ndarray, contexts: np.ndarray) -> float:
    bits = 0.0
    for context in np.unique(contexts):
        counts = np.unique(values[contexts == context], return_counts=True)[1]
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
    return bits / 8


def outcome(data: bytes, contexts: np.ndarray) -> np.ndarray | None:
    """What is decoded, None if it is refused; anything else that is raised fails the test."""
    try:
        return decode_integers(memoryview(data), contexts)
    except UpdateRejected:
        return None


@given(numbers=pairs)
def test_decoding_gives_back_what_was_encoded(numbers):
    values, contexts = arrays(numbers)
    decoded = decode_integers(memoryview(encode_integers(values, contexts)), contexts)
    assert decoded.dtype == np.int32
    assert np.array_equal(decoded, values)


@pytest.mark.slow
@pytest.mark.parametrize("num_values", [1, 2, 1000, MANY - 1, MANY, MANY + 1, MANY + 5000])
def test_short_and_long_messages_come_through_outliers_included(num_values):
    values, contexts = laplace(num_values)
    outliers = [-LARGEST_INTEGER, LARGEST_INTEGER, 127, -127, 128, -128, 1000][:num_values]
    values[np.linspace(0, num_values - 1, len(outliers)).astype(int)] = outliers
    assert np.array_equal(decode_integers(memoryview(encode_integers(values, contexts)), contexts), values)


def test_no_values_are_no_bytes():
    nothing = np.zeros(0, dtype=np.uint8)
    assert encode_integers(nothing.astype(np.int32), nothing) == b""
    assert len(decode_integers(memoryview(b""), nothing)) == 0
    with pytest.raises(UpdateRejected, match="got 1"):
        decode_integers(memoryview(b"x"), nothing)


def test_bytes_of_another_day_mean_the_same():
    """Three contexts and an escape; a decoder that was written from docs/wire-format.md alone agrees."""
    data = bytes.fromhex("28ffae21231e41805200f8978677ec2fdca0a249bb9590eefe")
    contexts = (np.arange(40) % 3).astype(np.uint8)
    assert decode_integers(memoryview(data), contexts).tolist() == [
        0, 2, -3, 0, -1, 0, -1, -2, 3, -1, -1, -70000, -1, -1, 3, -1, -2, 0, 0, 1,
        -3, 1, 0, 3, -1, 0, -2, 0, -2, -3, 1, -1, -1, 1, 0, -1, 1, -2, -3, 1,
    ]  # fmt: skip


@pytest.mark.parametrize("num_values", [2_000, 20_000, 300_000])
@pytest.mark.parametrize("width", [0.08, 0.2, 1.0])
def test_the_size_is_within_three_percent_and_thirty_bytes_of_the_entropy(num_values, width):
    values, contexts = laplace(num_values, width=width)
    size = len(encode_integers(values, contexts))
    assert size <= 1.03 * empirical_entropy_bytes(values, contexts) + 30


@pytest.mark.parametrize(("width", "largest"), [(0.5, 1), (2.2, 7), (40.0, 127)])
def test_the_size_holds_for_normal_values_up_to_a_largest(width, largest):
    values, contexts = normal(50_000, width=width, largest=largest)
    size = len(encode_integers(values, contexts))
    assert size <= 1.005 * empirical_entropy_bytes(values, contexts) + 30


def test_a_million_zeros_take_next_to_nothing():
    zeros = np.zeros(1_000_000, dtype=np.int32)
    assert len(encode_integers(zeros, zeros.astype(np.uint8))) < 600


@pytest.mark.parametrize("value", [LARGEST_INTEGER + 1, -LARGEST_INTEGER - 1, -(2**31)])
def test_a_value_that_three_bytes_do_not_hold_is_an_error(value):
    with pytest.raises(ValueError, match="at most 8388607"):
        encode_integers(np.array([value], dtype=np.int32), np.zeros(1, dtype=np.uint8))


def test_a_context_that_is_none_is_an_error():
    contexts = np.array([MAX_CONTEXTS], dtype=np.uint8)
    with pytest.raises(ValueError, match="below 32, got 32"):
        encode_integers(np.zeros(1, dtype=np.int32), contexts)
    with pytest.raises(ValueError, match="below 32, got 32"):
        decode_integers(memoryview(b""), contexts)


def test_every_truncation_and_extension_is_refused():
    values, contexts = laplace(500)
    values[7] = 100_000
    data = encode_integers(values, contexts)
    assert all(outcome(data[:length], contexts) is None for length in range(len(data)))
    assert outcome(data + b"\0", contexts) is None


@pytest.mark.parametrize("mask", [1, 0x80, 0xFF])
def test_a_changed_byte_is_refused_or_gives_other_integers(mask):
    values, contexts = laplace(300)
    values[7] = 100_000
    data = encode_integers(values, contexts)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= mask
        seen = outcome(bytes(changed), contexts)
        assert seen is None or (len(seen) == len(values) and np.abs(seen).max() <= 2**23)


@given(data=st.binary(max_size=80), numbers=pairs)
def test_noise_does_no_harm(data, numbers):
    _, contexts = arrays(numbers)
    seen = outcome(data, contexts)
    assert seen is None or len(seen) == len(contexts)


@pytest.mark.slow
def test_damaged_lanes_are_refused():
    values, contexts = laplace(MANY)
    data = encode_integers(values, contexts)
    assert outcome(data[:-2], contexts) is None
    assert outcome(data + b"\0\0", contexts) is None
    for position in np.random.default_rng(0).integers(0, len(data), 10).tolist():
        changed = bytearray(data)
        changed[position] ^= 0x55
        seen = outcome(bytes(changed), contexts)
        assert seen is None or len(seen) == MANY


@pytest.mark.slow
@pytest.mark.parametrize("more", [0, 1, 37])
@pytest.mark.parametrize("run", [1, 63, 64, 65, 50_000])
def test_lanes_do_not_mind_where_contexts_change(more, run):
    """Steps of 64 values, within which contexts change always, at times, or hardly ever."""
    values, _ = laplace(MANY + more)
    contexts = (np.arange(len(values)) // run % 5).astype(np.uint8)
    data = encode_integers(values, contexts)
    assert np.array_equal(decode_integers(memoryview(data), contexts), values)


@pytest.mark.parametrize(("width", "bits"), [(0.08, 13), (0.3, 12), (1.0, 11), (30.0, 11)])
def test_lanes_take_a_hundredth_of_the_bytes_or_are_as_few_as_can_be(width, bits):
    values, contexts = laplace(MANY, width=width)
    data = encode_integers(values, contexts)
    assert data[0] == bits
    assert bits == 13 or 3 * (MANY >> bits) <= 0.01 * len(data)


@pytest.mark.parametrize("first", [b"", b"\x0a", b"\x0e", b"\xff"])
def test_more_or_fewer_lanes_than_there_may_be_are_refused(first):
    values, contexts = laplace(MANY)
    data = encode_integers(values, contexts)
    with pytest.raises(UpdateRejected, match="expected 11 to 13 lane bits"):
        decode_integers(memoryview(first and first + data[1:]), contexts)


def test_a_table_without_an_end_is_refused():
    with pytest.raises(UpdateRejected, match="have no end"):
        decode_integers(memoryview(bytes(17)), np.zeros(1, dtype=np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("num_values", [100_000, 400_000])
def test_decoding_allocates_a_few_bytes_per_value(num_values):
    values, contexts = laplace(num_values)
    data = memoryview(encode_integers(values, contexts))
    tracemalloc.start()
    decode_integers(data, contexts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * num_values + 1_000_000
