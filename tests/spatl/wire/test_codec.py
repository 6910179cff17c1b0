"""Codecs: what the receiver decodes, and how many bytes it takes."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.channels.layout import Places
from spatl.errors import UpdateRejected
from spatl.wire.codecs import CODECS
from spatl.wire.quantised import dequantise, quantise

FLOATS = ("float32", "float16")
LEVELS = {"int8": 127, "int4": 7, "ternary": 1}
ENTROPY = tuple(f"{name}-entropy" for name in LEVELS)
CODED = (*ENTROPY, "adaptive")

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
values = st.lists(finite, max_size=40)
values_of_channels = st.lists(st.tuples(finite, st.integers(0, 5)), max_size=60)


def places_of(channels: torch.Tensor) -> Places:
    """Places in channels whose values lie in three tensors."""
    return Places(channels, channels % 3)


def encoded(name: str, numbers: torch.Tensor, channels: torch.Tensor, *, seed: int = 0) -> bytes:
    return CODECS[name].encode(numbers, places_of(channels), generator=torch.Generator().manual_seed(seed))


def coded(name: str, numbers: torch.Tensor, channels: torch.Tensor, *, seed: int = 0) -> torch.Tensor:
    return CODECS[name].decode(memoryview(encoded(name, numbers, channels, seed=seed)), places_of(channels))


def coded_floats(name: str, numbers: list[float]) -> torch.Tensor:
    return coded(name, torch.tensor(numbers, dtype=torch.float32), torch.zeros(len(numbers), dtype=torch.int64))


def message(num_values: int = 500, num_channels: int = 20, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Values whose channels differ in size and width and lie scattered; one of them is zero throughout."""
    generator = torch.Generator().manual_seed(seed)
    channels = (torch.rand(num_values, generator=generator) ** 2 * num_channels).long()
    channels[:num_channels] = torch.arange(num_channels)
    width = torch.rand(num_channels, generator=generator) * 0.01
    width[3] = 0.0
    return torch.randn(num_values, generator=generator) * width[channels], channels


def outcome(name: str, data: bytes, channels: torch.Tensor) -> torch.Tensor | None:
    """What is decoded, None if it is refused; anything else that is raised fails the test."""
    try:
        return CODECS[name].decode(memoryview(data), places_of(channels))
    except UpdateRejected:
        return None


def step_of_each(name: str, numbers: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
    """A bound of each value's step: a scale is less than 2^(1/16) above the largest, or 2^-15.875 of the top one."""
    largest = torch.zeros(int(channels.max()) + 1).scatter_reduce_(0, channels, numbers.abs(), "amax")
    scale = torch.maximum(largest * 1.0443, largest.max() * 2**-15.87)
    return scale[channels] / LEVELS[name]


@given(numbers=values)
def test_float32_comes_through_exactly(numbers):
    assert torch.equal(coded_floats("float32", numbers), torch.tensor(numbers, dtype=torch.float32))


@given(numbers=values)
def test_float16_is_the_nearest_half_or_its_largest(numbers):
    limit = float(np.finfo(np.float16).max)
    nearest = np.clip(np.array(numbers, dtype=np.float32), -limit, limit).astype(np.float16).astype(np.float32)
    assert np.array_equal(coded_floats("float16", numbers).numpy(), nearest)


@pytest.mark.parametrize("name", FLOATS)
def test_what_a_float_codec_decoded_is_coded_to_itself(name):
    seen = coded_floats(name, torch.randn(50, generator=torch.Generator().manual_seed(1)).tolist())
    assert torch.equal(coded_floats(name, seen.tolist()), seen)


@pytest.mark.parametrize("name", [*FLOATS, *LEVELS])
@pytest.mark.parametrize("num_values", [0, 1, 7, 500])
def test_the_length_is_foretold(name, num_values):
    numbers, channels = (part[:num_values] for part in message())
    num_channels = int(channels.max()) + 1 if num_values else 0
    expected = CODECS[name].num_bytes(num_values=num_values, num_channels=num_channels)
    assert len(encoded(name, numbers, channels)) == expected


def test_the_fixed_widths_are_eight_and_four_bits_and_five_to_a_byte():
    lengths = [CODECS[name].num_bytes(num_values=1000, num_channels=10) for name in LEVELS]
    assert lengths == [4 + 10 + 1000, 4 + 10 + 500, 4 + 10 + 200]


@pytest.mark.slow
@given(numbers=values_of_channels)
@pytest.mark.parametrize("name", LEVELS)
def test_entropy_coding_changes_no_value_and_costs_one_byte_at_most(name, numbers):
    exact = torch.tensor([v for v, _ in numbers], dtype=torch.float32)
    channels = torch.tensor([c for _, c in numbers], dtype=torch.int64)
    assert torch.equal(coded(f"{name}-entropy", exact, channels), coded(name, exact, channels))
    longest = CODECS[f"{name}-entropy"].num_bytes(num_values=len(exact), num_channels=len({c for _, c in numbers}))
    assert len(encoded(f"{name}-entropy", exact, channels)) <= longest == len(encoded(name, exact, channels)) + 1


@given(numbers=values_of_channels.filter(bool))
@pytest.mark.parametrize("name", LEVELS)
def test_quantised_values_are_finite_and_within_one_step(name, numbers):
    exact = torch.tensor([v for v, _ in numbers], dtype=torch.float32)
    exact = exact.clamp(-1e37, 1e37)
    channels = torch.tensor([c for _, c in numbers], dtype=torch.int64)
    seen = coded(name, exact, channels)
    assert bool(torch.isfinite(seen).all())
    assert bool(((seen - exact).abs() <= step_of_each(name, exact, channels) * 1.0001 + 2.0**-100).all())
    assert bool((seen[exact == 0] == 0).all())


@pytest.mark.slow
@pytest.mark.parametrize("name", LEVELS)
def test_quantised_values_are_right_on_average(name):
    """The mean of n draws, each off by half a step at most in the standard deviation, is within five of its own."""
    numbers, channels = message(200)
    num_draws = 400
    mean = torch.stack([coded(name, numbers, channels, seed=seed) for seed in range(num_draws)]).double().mean(0)
    tolerance = 5 * 0.5 * step_of_each(name, numbers, channels) / num_draws**0.5
    assert bool(((mean - numbers).abs() <= tolerance).all())


@given(numbers=st.lists(st.floats(2.0**-10, 2.0**4, width=32), min_size=1, max_size=40))
@pytest.mark.parametrize("levels", LEVELS.values())
def test_a_scale_is_the_largest_value_of_its_channel_rounded_up(levels, numbers):
    """By a sixteenth of an octave at most, so that no value is clipped; the highest code stands for the scale."""
    largest, channels = torch.tensor(numbers), torch.arange(len(numbers))
    top, scales, _ = quantise(largest, channels, levels=levels, generator=torch.Generator())
    highest = dequantise(top, scales, np.full(len(numbers), levels), channels, levels=levels)
    assert bool((highest >= largest * (1 - 1e-6)).all())
    assert bool((highest <= largest * 2 ** (1 / 16) * (1 + 1e-4)).all())


@pytest.mark.parametrize("name", [*LEVELS, *CODED])
def test_the_same_generator_gives_the_same_bytes_and_another_one_others(name):
    numbers, channels = message()
    codec, places = CODECS[name], places_of(channels)
    one, again, other = (
        codec.encode(numbers, places, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other


@pytest.mark.parametrize("name", [*LEVELS, *CODED])
@pytest.mark.parametrize("number", [3e38, -3e38, 1e-45, 1e-30])
def test_numbers_at_the_ends_of_the_range_stay_finite(name, number):
    seen = coded(name, torch.tensor([number, 0.0]), torch.tensor([0, 0]))
    assert bool(torch.isfinite(seen).all())
    assert seen[1] == 0


@pytest.mark.parametrize("name", ["float32", *LEVELS, *CODED])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_a_finite_number_is_none_for_the_receiver(name, number):
    numbers, channels = message()
    numbers[5] = number
    seen = outcome(name, encoded(name, numbers, channels), channels)
    assert seen is None or not bool(torch.isfinite(seen).all())


@pytest.mark.parametrize("name", ENTROPY)
def test_an_entropy_coded_message_is_smaller_where_there_is_something_to_gain(name):
    numbers, channels = message(20_000)
    assert len(encoded(name, numbers, channels)) < 0.95 * len(encoded(name.removesuffix("-entropy"), numbers, channels))


@pytest.mark.parametrize("name", [*FLOATS, *LEVELS])
def test_a_float_or_quantised_message_of_another_length_is_refused(name):
    with pytest.raises(UpdateRejected, match=f"bytes of {name} values, got 3"):
        CODECS[name].decode(memoryview(b"abc"), places_of(torch.zeros(1, dtype=torch.int64)))


@pytest.mark.parametrize("name", ENTROPY)
def test_an_unknown_flag_is_refused(name):
    for data in (b"", b"\2\0\0\0\0\0", b"\1\0"):
        with pytest.raises(UpdateRejected, match=f"of {name} values begin with the flag"):
            CODECS[name].decode(memoryview(data), places_of(torch.zeros(1, dtype=torch.int64)))


@pytest.mark.parametrize("name", CODECS)
def test_every_truncation_and_extension_is_refused(name):
    numbers, channels = message(100)
    data = encoded(name, numbers, channels)
    assert all(outcome(name, data[:length], channels) is None for length in range(len(data)))
    assert outcome(name, data + b"\0", channels) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LEVELS, *CODED])
@pytest.mark.parametrize("mask", [1, 0x80, 0xFF])
def test_a_changed_byte_is_refused_or_changes_values_only(name, mask):
    numbers, channels = message(200)
    data = encoded(name, numbers, channels)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= mask
        seen = outcome(name, bytes(changed), channels)
        assert seen is None or (len(seen) == len(numbers) and bool(torch.isfinite(seen).all()))


@pytest.mark.slow
@pytest.mark.parametrize("name", CODECS)
def test_decoding_allocates_a_few_bytes_per_value(name):
    numbers, channels = message(200_000, 500)
    data, places = memoryview(encoded(name, numbers, channels)), places_of(channels)
    tracemalloc.start()
    CODECS[name].decode(data, places)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 * len(numbers) + 1_000_000


def test_channels_are_counted_within_the_message():
    """Four channels of thousands cost four scales, and codes do not depend on what the channels are called."""
    numbers, channels = message(60, 4)
    far = 1000 * channels + 7
    assert places_of(far).local_channels.tolist() == channels.tolist()
    for name in (*LEVELS, *ENTROPY):
        assert encoded(name, numbers, far) == encoded(name, numbers, channels)


def test_numbers_on_the_wire_are_distinct_and_names_those_of_the_table():
    assert len({codec.number for codec in CODECS.values()}) == len(CODECS) > 10
    assert [codec.name for codec in CODECS.values()] == list(CODECS)
