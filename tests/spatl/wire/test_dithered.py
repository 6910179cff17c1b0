"""The codec of shared dither: its law, its bytes, and that both sides read the same."""

import math
import struct
from fractions import Fraction
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.channels.layout import Places
from spatl.errors import UpdateRejected
from spatl.wire import adaptive, coder
from spatl.wire.codecs import CODECS
from spatl.wire.dithered import decode_dithered, encode_dithered
from tests.support.dither import numbers

CODEC = CODECS["dithered"]
WHOLE = 0.5
"""The mean magnitude in steps from which on all of a tensor's dither is taken off."""

finite = st.floats(-1e6, 1e6, width=32)
messages = st.lists(st.tuples(finite, st.integers(0, 6)), max_size=60)


def of(pairs: list[tuple[float, int]]) -> tuple[torch.Tensor, Places]:
    """Values and their places, each tensor one channel."""
    tensors = torch.tensor([tensor for _, tensor in pairs], dtype=torch.int64)
    return torch.tensor([value for value, _ in pairs], dtype=torch.float32), Places(tensors, tensors)


def one_tensor(values: torch.Tensor) -> tuple[torch.Tensor, Places]:
    where = torch.zeros(len(values), dtype=torch.int64)
    return values, Places(where, where)


def laplace(num_values: int) -> tuple[torch.Tensor, Places]:
    """Laplace-like values in five tensors, one after the other, each next one 1.4 times as wide."""
    draw = torch.Generator().manual_seed(3)
    tensors = torch.arange(num_values) * 5 // max(num_values, 1)
    values = torch.randn(num_values, generator=draw) * torch.rand(num_values, generator=draw)
    return 0.01 * values * 2.0 ** (tensors / 2), Places(tensors, tensors)


def seen(values: torch.Tensor, places: Places, *, step: float, seed: int) -> torch.Tensor:
    return decode_dithered(memoryview(encode_dithered(values, places, step=step, seed=seed)), places)


def beside_large_ones(value: float, number: int) -> tuple[torch.Tensor, Places]:
    """So many times a value, among as many of 1.5 and -1.5: their mean magnitude is one of which all is taken off."""
    values = torch.full((2 * number,), value)
    values[1::2] = torch.tensor([1.5, -1.5]).repeat(number // 2)
    assert float(values.abs().mean()) >= WHOLE
    return one_tensor(values)


NUMBER = 40_000


@pytest.mark.parametrize("value", [0.0, 1e-6, 0.013, 0.3, -0.3, 0.49, 0.5])
def test_the_error_is_zero_in_the_mean_uniform_and_the_same_whatever_the_value_is(value):
    """Steps of 1. Of n errors, uniform within half a step, the mean deviates by sqrt(1 / 12 n), the variance, 1 / 12,
    by sqrt(1 / 180 n), and each tenth of the range has a tenth of them, sqrt(0.09 n) more or less."""
    values, places = beside_large_ones(value, NUMBER)
    errors = (seen(values, places, step=1.0, seed=5)[::2].double() - value).numpy()
    assert np.abs(errors).max() <= 0.5 + 1e-7
    assert abs(errors.mean()) < 5 * math.sqrt(1 / 12 / NUMBER)
    assert abs(errors.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / NUMBER)
    tenths = np.bincount(((errors + 0.5) * 10).astype(int).clip(0, 9), minlength=10)
    assert np.abs(tenths - NUMBER / 10).max() < 5 * math.sqrt(0.09 * NUMBER)


def test_one_value_is_right_on_average_over_the_seeds():
    """What 1,000 seeds make of the same three values, as clients' messages of one round or of many would be."""
    values, places = one_tensor(torch.tensor([0.3, -0.04, 2.2]))
    found = torch.stack([seen(values, places, step=1.0, seed=seed) for seed in range(1000)]).double()
    assert bool(((found.mean(0) - values).abs() < 5 * math.sqrt(1 / 12 / 1000)).all())
    assert float(torch.corrcoef((found - values).T)[0, 1].abs()) < 5 / math.sqrt(1000)


@pytest.mark.parametrize(("value", "eighths"), [(0.02, 1), (0.05, 2), (0.1, 4), (0.2, 6), (0.4, 7)])
def test_of_small_values_a_share_is_taken_off_and_the_error_is_zero_in_the_mean(value, eighths):
    """Of x steps, a w-th of the dither taken off leaves (1 - w) x (1 - x) + w^2 / 12; the mean is x all the same."""
    values, places = one_tensor(torch.full((NUMBER,), value))
    errors = (seen(values, places, step=1.0, seed=8).double() - value).numpy()
    share = eighths / 8
    expected = (1 - share) * value * (1 - value) + share**2 / 12
    assert abs(errors.mean()) < 5 * math.sqrt(expected / NUMBER)
    assert errors.var() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("mean", [0.05, 0.1, 0.18])
def test_the_share_makes_the_error_smaller_than_all_of_the_dither_or_none_of_it_does(mean):
    """Of Laplace values: B = E x (1 - x), of what is below a step, is the error without, 1 / 12 with all of it."""
    uniform = torch.rand(2 * NUMBER, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    exact = -mean * uniform.log() * torch.tensor([1.0, -1.0]).repeat(NUMBER)
    fraction = exact.abs().frac()
    values, places = one_tensor(exact.float())
    squares = float((seen(values, places, step=1.0, seed=8).double() - exact).square().mean())
    assert squares < 0.97 * min(1 / 12, float((fraction * (1 - fraction)).mean()))


def test_tensors_that_hardly_move_keep_their_zeros():
    values, places = of([(0.0, 0)] * 40 + [(1.0, 1)] * 40)
    assert not bool(seen(values, places, step=4.0, seed=1)[:40].any())
    values, places = of([(0.0, 0)] * 600 + [(0.5, 0)] + [(1.0, 1)] * 40)  # a mean of less than a 64th of a step
    decoded = seen(values, places, step=4.0, seed=1)
    assert not bool(decoded[:600].any())
    assert float(decoded[600]) in (0.0, 4.0)


@given(
    steps=st.lists(st.integers(-40, 40).map(lambda n: n / 16), min_size=1, max_size=30), seed=st.integers(0, 2**32 - 1),
    exponent=st.integers(-90, 40),
)  # fmt: skip
def test_every_bit_of_what_is_decoded_follows_from_seed_step_and_class_by_hand(steps, seed, exponent):
    """With 1.75 and -1.75 among them, so that all of the dither is taken off.

    q = floor(x + D / 2^24), and what is read is (q - (D - 2^23) / 2^24) * step, each operation rounded to float32.
    """
    numbers_ = np.array([*steps, *[1.75, -1.75] * len(steps)], dtype=np.float32)
    values, places = one_tensor(torch.from_numpy(numbers_ * np.float32(2.0**exponent)))
    decoded = seen(values, places, step=2.0**exponent, seed=seed)
    mean = sum(map(abs, numbers_.tolist())) / len(numbers_)
    assert mean >= WHOLE
    expected = []
    for x, dither in zip(numbers_.tolist(), numbers(seed, len(numbers_)), strict=True):
        q = math.floor(Fraction(x) + Fraction(dither, 2**24))
        expected.append(np.float32(q) - np.float32((dither - 2**23) / 2**24))
    again = np.array(expected, dtype=np.float32) * np.float32(2.0**exponent)
    # A sum within 2^-24 of a whole number is rounded in float32 before it is cut off: the sender's affair.
    differs = decoded.numpy() != again
    assert np.abs(decoded.numpy() - again)[differs].sum() <= differs.sum() * 2.0**exponent
    assert differs.sum() <= 1


@given(pairs=messages, step=st.floats(0.25, 1e6, width=32), seed=st.integers(0, 2**32 - 1))
def test_no_value_is_off_by_a_step_and_a_half(pairs, step, seed):
    values, places = of(pairs)
    decoded = seen(values, places, step=step, seed=seed)
    assert len(decoded) == len(values)
    assert bool(((decoded - values).abs() <= 1.5 * step * 1.001 + values.abs() * 1e-6).all())


@given(
    pairs=st.lists(st.tuples(finite, st.integers(0, 6)), max_size=60), step=st.floats(1e-6, 1e6),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_without_the_compiled_coder_bytes_and_values_are_the_same(pairs, step, seed):
    values, places = of(pairs)
    data = encode_dithered(values, places, step=step, seed=seed)
    decoded = decode_dithered(memoryview(data), places)
    with (
        patch("spatl.wire.entropy.encode", coder.encode_by_numpy),
        patch("spatl.wire.entropy.decode", coder.decode_by_numpy),
    ):
        assert encode_dithered(values, places, step=step, seed=seed) == data
        assert torch.equal(decode_dithered(memoryview(data), places), decoded)


@pytest.mark.slow
def test_long_messages_of_many_lanes_are_read_back():
    """2^20 values and more, of which only some are counted; in tensors so small that a part has several."""
    tensors = torch.arange(2**20 + 77) // 50_000
    values = torch.randn(len(tensors), generator=torch.Generator().manual_seed(1)) * 1.5**tensors
    decoded = seen(values, Places(tensors, tensors), step=float(values.square().mean().sqrt()), seed=4)
    assert float((decoded - values).square().mean() / values.square().mean()) < 1 / 12


def test_at_the_error_of_rounding_at_random_it_takes_two_thirds_of_the_bytes():
    """With four root mean squares to the step; with the 4.5 that it takes by itself, three fifths."""
    values, places = laplace(30_000)
    at_random, itself = (
        CODECS[name].encode(values, places, generator=torch.Generator()) for name in ("adaptive", "dithered")
    )
    step = 4 * adaptive.root_mean_square(values)
    either = [at_random, encode_dithered(values, places, step=step, seed=3)]
    assert len(itself) < 0.61 * len(at_random)
    errors = [
        float((CODECS[name].decode(memoryview(data), places) - values).square().sum())
        for name, data in zip(("adaptive", "dithered"), either, strict=True)
    ]
    assert len(either[1]) < 0.68 * len(either[0])
    assert errors[1] < 1.1 * errors[0]


def test_what_integers_take_is_within_a_twentieth_of_their_entropy_given_the_dither():
    """The entropy of what was observed, by tensor and eighth of the dither, which nobody can tell beforehand."""
    values, places = laplace(30_000)
    step = 4 * adaptive.root_mean_square(values)
    data = encode_dithered(values, places, step=step, seed=9)
    dither = np.array(numbers(9, len(values)))
    integers = np.floor(values.numpy() / np.float32(step) + dither / 2**24).astype(int)
    bits = 0.0
    for tensor in range(5):
        for eighth in range(8):
            own = integers[(np.arange(30_000) * 5 // 30_000 == tensor) & (dither >> 21 == eighth)]
            counts = np.unique(own, return_counts=True)[1]
            bits -= float((counts * np.log2(counts / counts.sum())).sum())
    assert bits < 8 * len(data) < 1.05 * bits


@given(max_bytes=st.integers(-5, 1000))
def test_a_message_keeps_to_its_bytes_if_the_coarsest_does(max_bytes):
    values, places = laplace(2_000)
    draws = torch.Generator().manual_seed(1)
    data = CODEC.encode(values, places, generator=draws, max_bytes=max_bytes)
    coarsest = CODEC.encode(values, places, generator=torch.Generator().manual_seed(1), max_bytes=-1000)
    assert len(data) <= max_bytes or data == coarsest
    assert len(coarsest) <= max_bytes or data == coarsest
    if max_bytes > 200:
        assert len(data) > 0.8 * max_bytes


def test_two_messages_of_one_generator_have_two_seeds():
    values, places = laplace(500)
    draws = torch.Generator().manual_seed(2)
    seeds = {struct.unpack_from("<fI", CODEC.encode(values, places, generator=draws))[1] for _ in range(20)}
    assert len(seeds) == 20


def test_nothing_and_no_number():
    values, places = of([])
    data = encode_dithered(values, places, step=1.0, seed=3)
    assert data == struct.pack("<fI", 1.0, 3)
    assert len(decode_dithered(memoryview(data), places)) == 0
    values, places = of([(1.0, 0), (math.nan, 1)])
    with pytest.raises(UpdateRejected, match="the step of dithered values must be from 2\\^-100 to 2\\^60, got nan"):
        decode_dithered(memoryview(encode_dithered(values, places, step=1.0, seed=3)), places)


@pytest.mark.parametrize("step", [0.0, -1.0, 2.0**-101, 2.0**61, math.inf, math.nan])
def test_a_step_that_no_sender_takes_is_refused(step):
    values, places = laplace(40)
    data = bytearray(encode_dithered(values, places, step=0.01, seed=3))
    struct.pack_into("<f", data, 0, step)
    with pytest.raises(UpdateRejected, match="the step of dithered values"):
        decode_dithered(memoryview(bytes(data)), places)


def test_what_is_cut_off_or_goes_on_is_refused():
    values, places = laplace(400)
    data = encode_dithered(values, places, step=0.02, seed=3)
    for damaged in (data[:5], data[:10], data[:-2], data + b"\0", data + b"\0\0"):
        with pytest.raises(UpdateRejected):
            decode_dithered(memoryview(damaged), places)


@given(scale=st.sampled_from([0.0, 1e-38, 1e-20, 1e20, 3e38]), seed=st.integers(0, 99))
def test_values_of_any_size_are_read_back_finite(scale, seed):
    values, places = one_tensor(scale * torch.linspace(-1, 1, 200))
    data = CODEC.encode(values, places, generator=torch.Generator().manual_seed(seed))
    assert bool(torch.isfinite(CODEC.decode(memoryview(data), places)).all())


def test_its_number_is_its_own():
    assert [name for name, codec in CODECS.items() if codec.number == 9] == ["dithered"]
    assert CODEC.relative
    assert not CODEC.sums
