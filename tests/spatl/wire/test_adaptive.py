"""The codec of one step for all values: how far off it is, how long it gets, and that nothing damaged comes through."""

import math
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spatl.channels.layout import Places
from spatl.errors import UpdateRejected
from spatl.wire import adaptive

UNIT = 2.0**-adaptive.UNIT_BITS

finite = st.floats(-1e6, 1e6, width=32)
messages = st.lists(st.tuples(finite, st.integers(0, 6)), max_size=60)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of(pairs: list[tuple[float, int]]) -> tuple[torch.Tensor, Places]:
    """Values and their places, each tensor one channel."""
    tensors = torch.tensor([tensor for _, tensor in pairs], dtype=torch.int64)
    return torch.tensor([value for value, _ in pairs], dtype=torch.float32), Places(tensors, tensors)


def message(num_values: int = 500, *, seed: int = 0) -> tuple[torch.Tensor, Places]:
    """Laplace-like values in five tensors, each next one twice as wide."""
    draw = generator(seed)
    tensors = torch.randint(0, 5, (num_values,), generator=draw)
    values = torch.randn(num_values, generator=draw) * torch.rand(num_values, generator=draw)
    return 0.01 * values * 2.0**tensors, Places(tensors + 3, tensors)


def decoded(data: bytes, places: Places) -> torch.Tensor:
    return adaptive.decode(memoryview(data), places)


def step_of(data: bytes) -> float:
    return struct.unpack_from("<f", data)[0]


@given(pairs=messages, step=st.floats(0.25, 1e6, width=32), seed=st.integers(0, 99))
def test_rounding_is_off_by_at_most_one_step(pairs, step, seed):
    values, places = of(pairs)
    seen = decoded(adaptive.encode_rounded(values, places, step=step, generator=generator(seed)), places)
    assert len(seen) == len(values)
    assert bool(((seen - values).abs() <= step * 1.001 + values.abs() * 1e-6).all())
    assert bool((seen[values == 0] == 0).all())


@pytest.mark.slow
@pytest.mark.parametrize("step", [0.005, 0.03, 0.5])
def test_rounding_is_right_on_average(step):
    """The mean of n draws, each off by half a step at most in the standard deviation, is within five of its own."""
    values, places = message(100)
    num_draws = 200
    draws = [
        decoded(adaptive.encode_rounded(values, places, step=step, generator=generator(seed)), places)
        for seed in range(num_draws)
    ]
    mean = torch.stack(draws).double().mean(0)
    assert bool(((mean - values).abs() <= 5 * 0.5 * step / num_draws**0.5).all())


@pytest.mark.slow
@given(pairs=messages, max_bytes=st.none() | st.integers(0, 120), zone=st.booleans())
def test_a_change_is_off_by_half_a_step_or_065_of_one_that_is_a_power_of_two(pairs, max_bytes, zone):
    values, places = of(pairs)
    data = adaptive.encode_change(values, places, max_bytes=max_bytes, towards_zero=zone)
    mantissa, exponent = math.frexp(step_of(data))
    assert mantissa == 0.5
    assert exponent - 1 >= -adaptive.UNIT_BITS
    seen = decoded(data, places)
    down, up = (0.65001, 0.35001) if zone else (0.5, 0.5)
    assert bool(((seen.double() - values.double()).abs() <= step_of(data) * down + values.abs() * 1e-6).all())
    assert bool((seen.abs() <= values.abs() + step_of(data) * up + values.abs() * 1e-6).all())
    assert bool((torch.remainder(seen.double(), UNIT) == 0).all())


def test_rounding_towards_zero_by_hand():
    """Below 0.65 steps of 2 a value is 0; the step is then <v, v> / <v, q> = (9 + 1 + 25 + 1) / (3 + 0 + 10 + 0)."""
    values, places = of([(3.0, 0), (-1.0, 0), (-5.0, 0), (1.0, 0)])
    data = adaptive.encode_towards_zero(values, places, step=2.0, generator=generator())
    assert step_of(data) == np.float32(36 / 13)
    assert decoded(data, places).tolist() == [np.float32(36 / 13) * q for q in (1, 0, -2, 0)]


@given(values=st.lists(finite, max_size=60), step=st.floats(0.25, 1e6, width=32))
def test_what_is_rounded_towards_zero_has_its_own_part_along_what_it_was(values, step):
    """Of one tensor, which is never a small one beside others."""
    numbers, places = of([(value, 3) for value in values])
    data = adaptive.encode_towards_zero(numbers, places, step=step, generator=generator())
    if data is None:  # as hardly a value is as large as a step
        assert float(numbers.abs().min()) < 0.65 * max(step, 2.5 * adaptive.root_mean_square(numbers))
        return
    exact, seen = numbers.double(), decoded(data, places).double()
    assert math.isclose(float(exact @ seen), float(exact @ exact), rel_tol=1e-5, abs_tol=1e-30)
    assert bool((seen * exact >= 0).all())
    assert bool((seen[exact.abs() < 0.64 * step] == 0).all())
    assert step_of(data) <= 2.00001 * step


def test_a_tensor_of_which_nothing_would_be_left_is_right_on_average_beside_one_that_is_cut():
    """Of 0.1 beside 10, whose step is some 16, rounding towards zero leaves nothing; at random some 1 in 160 stays.

    The mean of 20,000 draws is off by at most five of its own standard deviations, each sqrt(0.1 * 16) of one draw.
    """
    values = torch.cat([torch.linspace(-30, 30, 2000), torch.full((20_000,), 0.1)])
    tensors = torch.cat([torch.zeros(2000, dtype=torch.int64), torch.ones(20_000, dtype=torch.int64)])
    places = Places(tensors, tensors)
    step = 2.5 * adaptive.root_mean_square(values)
    data = adaptive.encode_towards_zero(values, places, step=step, generator=generator())
    seen = decoded(data, places)
    assert bool((seen[:2000][values[:2000].abs() < 0.64 * step] == 0).all())
    deviation = math.sqrt(0.1 * step_of(data) / 20_000)
    assert abs(float(seen[2000:].mean()) - 0.1) < 5 * deviation < 0.1


@pytest.mark.parametrize("values", [[1.0] * 50, [0.01, -0.01] * 20])
def test_values_that_are_all_alike_are_not_all_rounded_to_zero(values):
    """Each is 0.4 steps of 2.5 root mean squares; they are rounded at random instead, a third of them to a step."""
    numbers, places = of([(value, 1) for value in values])
    assert adaptive.encode_towards_zero(numbers, places, step=2.5 * abs(values[0]), generator=generator()) is None
    seen = decoded(adaptive.Adaptive().towards_zero().encode(numbers, places, generator=generator()), places)
    assert 0 < int((seen != 0).sum()) < len(values)


def test_rounding_an_update_towards_zero_takes_fewer_bytes_than_at_random_and_is_no_farther_off():
    """In two tensors that are as wide as each other."""
    draw, where = generator(), torch.arange(2).repeat(10_000)
    values, places = torch.randn(20_000, generator=draw) * torch.rand(20_000, generator=draw), Places(where, where)
    either = [
        codec.encode(values, places, generator=generator())
        for codec in (adaptive.Adaptive().towards_zero(), adaptive.Adaptive().towards_zero().unbiased())
    ]
    assert len(either[0]) < len(either[1])
    errors = [float((decoded(data, places) - values).square().sum()) for data in either]
    assert errors[0] < errors[1]


ENCODERS = {
    "towards zero": lambda v, p, limit: adaptive.encode_within(
        v, p, max_bytes=limit, generator=generator(1), towards_zero=True
    ),
    "within": lambda v, p, limit: adaptive.encode_within(v, p, max_bytes=limit, generator=generator(1)),
    "change": lambda v, p, limit: adaptive.encode_change(v, p, max_bytes=limit),
    "change, towards zero": lambda v, p, limit: adaptive.encode_change(v, p, max_bytes=limit, towards_zero=True),
}


@pytest.mark.slow
@settings(max_examples=12)
@given(seed=st.integers(0, 99), limits=st.lists(st.integers(-5, 1000), min_size=2, max_size=5).map(sorted))
@pytest.mark.parametrize("encode", ENCODERS.values(), ids=ENCODERS)
def test_a_message_keeps_to_its_bytes_if_the_coarsest_does_and_more_bytes_are_a_finer_step(encode, seed, limits):
    values, places = message(seed=seed)
    coarsest = encode(values, places, -1000)
    messages = [encode(values, places, limit) for limit in limits]
    for limit, data in zip(limits, messages, strict=True):
        assert len(data) <= limit or data == coarsest
        assert len(coarsest) <= limit or data == coarsest
    steps = [step_of(data) for data in messages]
    assert steps == sorted(steps, reverse=True)


@pytest.mark.slow
@given(seed=st.integers(0, 99), limits=st.lists(st.integers(0, 800), min_size=2, max_size=4).map(sorted))
def test_nearest_within_more_bytes_is_never_farther_from_any_value(seed, limits):
    values, places = message(seed=seed)
    sent = [adaptive.encode_change(values, places, max_bytes=limit) for limit in limits]
    errors = [(decoded(data, places) - values).abs() for data in sent]
    for closer, farther in zip(errors[1:], errors, strict=False):
        assert bool((closer <= farther).all())


@pytest.mark.slow
@pytest.mark.parametrize("encode", ENCODERS.values(), ids=ENCODERS)
def test_more_bytes_are_a_smaller_error(encode):
    """Ten thousand values, and each next limit a third longer; the squares of the errors, not a bound of them."""
    values, places = message(10_000)
    errors = [
        float((decoded(encode(values, places, round(400 * 1.33**place)), places) - values).square().sum())
        for place in range(12)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 * errors[0]


@pytest.mark.parametrize("encode", ENCODERS.values(), ids=ENCODERS)
def test_what_room_there_is_is_used(encode):
    """Nearly: a step is a ninth of an octave from the next, or an octave where it is a power of two."""
    values, places = message(5_000)
    assert 0.5 * 1500 < len(encode(values, places, 1500)) <= 1500


@pytest.mark.parametrize("encode", ENCODERS.values(), ids=ENCODERS)
@pytest.mark.parametrize("values", [[], [0.0], [0.0] * 9, [1.0], [-5.0], [3e38], [-3e38, 1.0], [1e-45], [1e-30, 0.0]])
@pytest.mark.parametrize("limit", [-50, 0, 5, 1000])
def test_messages_of_no_value_of_zeros_and_of_the_ends_of_the_range_stay_finite(encode, values, limit):
    numbers, places = of([(value, 2) for value in values])
    seen = decoded(encode(numbers, places, limit), places)
    assert len(seen) == len(numbers)
    assert bool(torch.isfinite(seen).all())
    assert bool((seen[numbers == 0] == 0).all())


@pytest.mark.parametrize("encode", ENCODERS.values(), ids=ENCODERS)
@pytest.mark.parametrize("limit", [0, 1000])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_by_the_receiver(encode, limit, number):
    values, places = message(20)
    values[7] = number
    with pytest.raises(UpdateRejected, match="must be a positive number, got nan"):
        decoded(encode(values, places, limit), places)


@given(
    offsets=st.lists(st.integers(-(2**23) + 1, 2**23 - 1), max_size=40),
    shift=st.integers(0, 7),
    tensors=st.lists(st.integers(0, 6), min_size=40, max_size=40),
)
def test_multiples_come_through_exactly(offsets, shift, tensors):
    whole = np.array(offsets, dtype=np.int64) << shift
    where = torch.tensor(tensors[: len(whole)], dtype=torch.int64)
    places = Places(where, where)
    seen = decoded(adaptive.encode_multiples(whole, places), places)
    assert (seen.double() / UNIT).to(torch.int64).tolist() == whole.tolist()


@pytest.mark.parametrize(
    ("offsets", "fits"),
    [([2**23 - 1, 1], True), ([2**23 + 1, 1], False), ([2**31 - 1], False), ([-(2**31), 2**30], True)],
)
def test_multiples_that_do_not_fit_are_told(offsets, fits):
    where = torch.zeros(len(offsets), dtype=torch.int64)
    assert (adaptive.encode_multiples(np.array(offsets, dtype=np.int64), Places(where, where)) is not None) == fits


def outcome(data: bytes, places: Places) -> torch.Tensor | None:
    """What is decoded, None if it is refused; anything else that is raised fails the test."""
    try:
        return decoded(data, places)
    except UpdateRejected:
        return None


@pytest.mark.parametrize("num_values", [0, 1, 2, 150])
def test_every_truncation_and_extension_is_refused(num_values):
    values, places = message(num_values)
    data = adaptive.encode_change(values, places, max_bytes=100)
    assert all(outcome(data[:length], places) is None for length in range(len(data)))
    assert outcome(data + b"\0", places) is None


def test_every_changed_byte_is_refused_or_gives_finite_values():
    values, places = message(40)
    data = adaptive.encode_change(values, places, max_bytes=60)
    for position in range(len(data)):
        for mask in (1, 0x10, 0x55, 0x80, 0xFF):
            changed = bytearray(data)
            changed[position] ^= mask
            seen = outcome(bytes(changed), places)
            assert seen is None or (len(seen) == len(values) and bool(torch.isfinite(seen).all()))


@given(noise=st.binary(max_size=80), pairs=messages)
def test_noise_does_no_harm(noise, pairs):
    values, places = of(pairs)
    for data in (noise, struct.pack("<f", 0.5) + noise):
        seen = outcome(data, places)
        assert seen is None or (len(seen) == len(values) and bool(torch.isfinite(seen).all()))


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), float("inf"), 2.0**61])
def test_a_step_that_is_none_is_refused(step):
    values, places = message(20)
    data = adaptive.encode_change(values, places)
    with pytest.raises(UpdateRejected, match="must be a positive number"):
        decoded(struct.pack("<f", step) + data[4:], places)


def test_a_class_beyond_the_last_tensor_is_refused():
    """Five tensors have their classes in three bytes; the last four bits are nobody's."""
    values, places = message(200)
    data = bytearray(adaptive.encode_change(values, places))
    data[6] |= 0x10
    with pytest.raises(UpdateRejected, match="beyond the last"):
        decoded(bytes(data), places)


def test_a_tensor_of_small_values_costs_little_beside_one_of_large_values():
    """Half of 20,000 values are a thousandth of the others: less than a fifth of a bit each is spent on them."""
    large = torch.randn(10_000, generator=generator())
    where = torch.arange(2).repeat(10_000)
    both = torch.stack([large, large / 1000], dim=1).ravel()
    alone = adaptive.encode_rounded(large, Places(where[::2], where[::2]), step=0.5, generator=generator())
    together = adaptive.encode_rounded(both, Places(where, where), step=0.5, generator=generator())
    assert len(together) - len(alone) < 10_000 / 8 / 5


@pytest.mark.slow
def test_decoding_and_encoding_allocate_a_few_bytes_per_value():
    values, places = message(50_000)
    tracemalloc.start()
    data = adaptive.encode_change(values, places, max_bytes=12_000)
    _, encoding = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    decoded(data, places)
    _, decoding = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert encoding < 50 * len(values) + 1_000_000
    assert decoding < 32 * len(values) + 1_000_000


def test_few_bytes_never_ask_for_more_memory_than_the_values_take():
    """A thousand values and a message of five bytes that promises what it will."""
    _, places = message(1000)
    for noise in (b"\xff" * 5, bytes(5), struct.pack("<f", 1.0) + b"\xff" * 40):
        tracemalloc.start()
        outcome(noise, places)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 3_000_000
