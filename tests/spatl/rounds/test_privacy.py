"""What epsilon a number of noisy releases adds up to."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatl.rounds.privacy import delta_of, epsilon_of


def divergence(epsilon: float, noise_multiplier: float, releases: int) -> float:
    """The integral of max(0, p - e^epsilon q) for the two outcomes that differ most, each a Gaussian per release."""
    shift = math.sqrt(releases)  # the densities depend on the sum of the releases alone
    x = np.linspace(shift / 2 - 14 * noise_multiplier - shift, shift / 2 + 14 * noise_multiplier + shift, 400_001)
    p, q = (np.exp(-((x - at) ** 2) / (2 * noise_multiplier**2)) for at in (shift, 0.0))
    norm = noise_multiplier * math.sqrt(2 * math.pi)
    return float(np.trapezoid(np.maximum(0.0, p - math.exp(epsilon) * q) / norm, x))


@pytest.mark.slow
@given(epsilon=st.floats(0, 8), noise_multiplier=st.floats(0.5, 20), releases=st.integers(1, 100))
@settings(max_examples=30)
def test_delta_is_the_divergence_of_the_releases(epsilon, noise_multiplier, releases):
    assert delta_of(epsilon, noise_multiplier, releases) == pytest.approx(
        divergence(epsilon, noise_multiplier, releases), rel=1e-3, abs=1e-9
    )


@pytest.mark.slow
@given(
    noise_multiplier=st.floats(0.3, 50),
    releases=st.integers(1, 1000),
    exponent=st.floats(-10, -2),
    more=st.integers(1, 9),
)
def test_epsilon_is_the_least_for_its_delta_and_grows_with_every_release(noise_multiplier, releases, exponent, more):
    delta = 10**exponent
    epsilon = epsilon_of(noise_multiplier, releases, delta)
    assert delta_of(epsilon, noise_multiplier, releases) <= delta * (1 + 1e-6)
    if epsilon > 0:
        assert delta_of(epsilon * (1 - 1e-6), noise_multiplier, releases) > delta * (1 - 1e-3)
    assert epsilon_of(noise_multiplier, releases + more, delta) >= epsilon
    assert epsilon_of(noise_multiplier * 2, releases, delta) <= epsilon


def test_who_never_took_part_gave_nothing_away():
    assert epsilon_of(1.0, 0, 1e-5) == 0.0


def test_epsilon_of_one_gaussian_is_that_of_the_literature():
    """mu = 1 at delta 1e-5: 4.377 (Dong et al. 2019, by their eq. 6)."""
    assert epsilon_of(1.0, 1, 1e-5) == pytest.approx(4.377, abs=1e-3)
