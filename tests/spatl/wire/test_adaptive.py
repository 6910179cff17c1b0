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
@given(pairs=messages, max_bytes=st.none() | st.integers(0, 120))
def test_a_change_is_off_by_half_a_step_that_is_a_power_of_two(pairs, max_bytes):
    values, places = of(pairs)
    data = adaptive.encode_change(values, places, max_bytes=max_bytes)
    mantissa, exponent = math.frexp(step_of(data))
    assert mantissa == 0.5
    assert exponent - 1 >= -adaptive.UNIT_BITS
    assert_nearest(values, places, data)


def assert_nearest(values: torch.Tensor, places: Places, data: bytes) -> None:
    """Each value is off by half a step at most, and what is read is a whole number of 2^-24."""
    seen = decoded(data, places)
    assert bool(((seen.double() - values.double()).abs() <= step_of(data) * 0.5 + values.abs() * 1e-6).all())
    assert bool((torch.remainder(seen.double(), UNIT) == 0).all())


@pytest.mark.slow
@given(pairs=messages)
def test_a_coarse_change_is_off_by_half_a_step_that_is_a_power_of_two_and_sends_an_eighth_of_the_squares(pairs):
    values, places = of(pairs)
    data = adaptive.encode_coarse_change(values, places)
    assert math.frexp(step_of(data))[0] == 0.5
    assert step_of(data) >= UNIT
    assert_nearest(values, places, data)
    assert step_of(data) <= max(4 * adaptive.root_mean_square(values) * 1.0001, UNIT)
    squares = values.double().square()
    sent = squares[decoded(data, places) != 0].sum()
    assert sent >= squares.sum() / 8 * 0.9999 or step_of(data) == UNIT


@pytest.mark.parametrize(
    ("values", "step"),
    [([3.0, 0.0, 0.0, 0.0], 4.0), ([-3.0, 1.0, 1.0, 1.0, 0.0], 4.0), ([10.0, -1.0, 1.0, -1.0], 16.0)],
)
def test_coarse_steps_by_hand(values, step):
    """Root mean squares are 1.5, sqrt(12 / 5) = 1.55 and sqrt(103 / 4) = 5.07.

    Of the powers of two one is from two to four times that: 4 of 3 to 6, 4 of 3.1 to 6.2 and 16 of 10.1 to 20.3.
    """
    numbers, places = of([(value, 1) for value in values])
    data = adaptive.encode_coarse_change(numbers, places)
    assert step_of(data) == step
    assert decoded(data, places).tolist() == [step * math.floor(value / step + 0.5) for value in values]


def test_a_coarse_step_is_halved_where_hardly_anything_would_be_sent():
    """Values of 1.2, whose step would be 4 for 3.39: half of that is more than each, half of 2 is not."""
    numbers, places = of([(1.2 * sign, 1) for sign in (1, -1, -1, 1)])
    data = adaptive.encode_coarse_change(numbers, places)
    assert step_of(data) == 2.0
    assert decoded(data, places).tolist() == [2.0, -2.0, -2.0, 2.0]


@pytest.mark.parametrize("value", [1.0, -1.0, 0.25, -0.25])
def test_half_a_step_is_not_counted_as_sent_and_values_that_are_all_that_arrive_whole(value):
    """The steps begin at four values. Half of two is the value itself, which may round to nothing."""
    numbers, places = of([(value, 1)] * 4)
    data = adaptive.encode_coarse_change(numbers, places)
    assert step_of(data) == abs(value)
    assert decoded(data, places).tolist() == [value] * 4


def test_coarse_changes_lead_to_where_values_that_are_all_alike_went():
    """The rest of a change goes into the next: x_hat is never off by more than a step of the last change."""
    goal, where = torch.full((64,), 0.3) * torch.tensor([1.0, -1.0]).repeat(32), torch.zeros(64, dtype=torch.int64)
    places, held = Places(where, where), torch.zeros(64)
    for _ in range(3):
        data = adaptive.encode_coarse_change(goal - held, places)
        held += decoded(data, places)
        assert float((goal - held).abs().max()) <= step_of(data) / 2
    assert float((goal - held).abs().max()) < 0.1


def test_coarse_changes_take_fewer_bytes_than_fine_ones():
    """Both steps are powers of two, the same for two of these four scales; the others take the next one."""
    values, places = message(20_000)
    ratios = [
        len(adaptive.encode_coarse_change(scale * values, places)) / len(adaptive.encode_change(scale * values, places))
        for scale in (1.0, 1.19, 1.41, 1.68)
    ]
    assert sorted(ratio == 1 for ratio in ratios) == [False, False, True, True]
    assert max(ratio for ratio in ratios if ratio != 1) < 0.7


ENCODERS = {
    "within": lambda v, p, limit: adaptive.encode_within(v, p, max_bytes=limit, generator=generator(1)),
    "change": lambda v, p, limit: adaptive.encode_change(v, p, max_bytes=limit),
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
