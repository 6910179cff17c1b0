"""Dither that both sides make: SplitMix64's numbers, by place, and densities: what a receiver expects given them."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatl.channels.vectors import PART
from spatl.wire.densities import DITHER_LEVELS, NUM_CELLS, fit_density, frequencies_by_dither
from spatl.wire.distributions import ESCAPE
from spatl.wire.dither import Dither
from spatl.wire.lanes import TOTAL
from tests.support.dither import numbers, splitmix


def test_the_generator_of_these_tests_is_the_published_one():
    """Outputs of seed 1234567 as other implementations print them."""
    assert list(itertools.islice(splitmix(1234567), 3)) == [
        6457827717110365317, 3203168211198807973, 9817491932198370423,
    ]  # fmt: skip


@given(seed=st.integers(0, 2**32 - 1), start=st.integers(0, 30), length=st.integers(0, 30))
def test_any_part_of_the_dither_is_what_a_generator_gives_that_goes_through_all_of_it(seed, start, length):
    part = slice(start, start + length)
    assert Dither(seed).of_part(part).tolist() == numbers(seed, part.stop)[part]


def test_dither_of_long_messages_goes_on_where_a_part_ends():
    own = Dither(2**32 - 1)
    assert own.of_part(slice(PART, PART + 9)).tolist() == numbers(2**32 - 1, PART + 9)[PART:]
    assert own.of_part(slice(1, PART + 1)).tolist() == numbers(2**32 - 1, PART + 1)[1:]


def test_dither_is_uniform_and_two_seeds_have_nothing_in_common():
    """Of 2^17 numbers, each sixteenth has 2^13, five deviations of 88 more or less; correlations within 5 / 2^8.5."""
    one, other = (Dither(seed).of_part(slice(0, PART)).astype(np.float64) for seed in (0, 1))
    for each in (one, other):
        assert np.abs(np.bincount((each * 2**-20).astype(int), minlength=16) - 2**13).max() < 5 * 88
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / 2**8.5
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 5 / 2**8.5


def mass(rate: float, low: float, high: float) -> float:
    """The mass of a Laplace density of some rate (per step) between two bounds."""

    def below(x: float) -> float:
        return 0.5 * math.exp(rate * x) if x < 0 else 1 - 0.5 * math.exp(-rate * x)

    return below(high) - below(low)


@pytest.mark.parametrize("rate", [1.0, 4.0, 12.0])
def test_what_is_expected_given_the_dither_is_the_mass_of_the_density_that_rounds_to_it(rate):
    """Of a Laplace density, whose hazards are all alike, as one level says to a twelfth of an octave of their odds.

    Given u, floor(x + u) is m for x within m - u and m + 1 - u; u is anywhere in its eighth. The mean of the two ends
    of a cell is off the mean over it by (rate / 8)^2 / 24 at most, as the sums' second derivative is rate^2 / 2. A
    level is off by a twelfth at most, and with it a sum 1 / 2 exp(-t) by a twelfth of t times that, which is 0.016 at
    most, and what lies between two sums by twice that.
    """
    edges = np.arange(NUM_CELLS + 1) / DITHER_LEVELS
    counts = np.round(1e9 * (np.exp(-rate * edges[:-1]) - np.exp(-rate * edges[1:]))).astype(np.int64)
    levels = fit_density(counts)
    found = frequencies_by_dither(levels)
    for eighth in range(DITHER_LEVELS):
        dithers = (eighth + (np.arange(64) + 0.5) / 64) / DITHER_LEVELS
        for integer in (-2, -1, 0, 1, 2):
            expected = np.mean([mass(rate, integer - u, integer + 1 - u) for u in dithers])
            assert found[eighth, integer % 256] / TOTAL == pytest.approx(expected, abs=0.032 + (rate / 8) ** 2 / 24)


@given(levels=st.lists(st.integers(0, 127), min_size=1, max_size=16))
def test_whatever_the_levels_are_frequencies_add_up_and_an_escape_is_possible(levels):
    found = frequencies_by_dither(levels)
    assert found.shape == (8, 256)
    assert (found >= 0).all()
    assert (found.sum(axis=1) == TOTAL).all()
    assert (found[:, ESCAPE] > 0).all()


@given(levels=st.lists(st.integers(0, 127), min_size=1, max_size=16))
def test_an_integer_under_a_dither_is_as_likely_as_its_opposite_under_the_opposite_dither(levels):
    """Values are symmetric to zero as far as a density knows; rounding sums down leaves one of 16384."""
    found = frequencies_by_dither(levels)
    for integer in range(1, 128):
        assert abs(found[:, integer] - found[::-1, -integer % 256]).max() <= 1
