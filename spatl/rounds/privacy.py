"""Privacy of a client in a run with central differential privacy, as a number (epsilon).

The server adds Gaussian noise to a sum in which a client counts at most a fixed length (`PrivateAggregator`). However
many such releases a client took part in, they are together one Gaussian mechanism (Dong et al. 2019, "Gaussian
differential privacy", corollary 3.3), whose delta is known exactly (Balle and Wang 2018, theorem 8), so that nothing is
lost to a bound.
"""

import math

import torch

_STEPS = 200


def delta_of(epsilon: float, noise_multiplier: float, releases: int) -> float:
    """The least delta for which `releases` Gaussian mechanisms are (epsilon, delta)-differentially private.

    Args:
        epsilon: At least 0.
        noise_multiplier: The noise's standard deviation, in lengths that one client's contribution may have.
        releases: How many of them one client took part in.
    """
    if releases == 0:
        return 0.0
    mu = math.sqrt(releases) / noise_multiplier
    points = torch.tensor([mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu], dtype=torch.float64)
    first, second = torch.special.log_ndtr(points).tolist()
    return max(0.0, math.exp(first) - math.exp(epsilon + second))


def epsilon_of(noise_multiplier: float, releases: int, delta: float) -> float:
    """The least epsilon for which `releases` Gaussian mechanisms are (epsilon, delta)-differentially private.

    Args:
        noise_multiplier: As of `delta_of`; above 0.
        releases: As of `delta_of`.
        delta: In (0, 1).
    """
    low, high = 0.0, 1.0
    if delta_of(low, noise_multiplier, releases) <= delta:
        return low
    while delta_of(high, noise_multiplier, releases) > delta:
        low, high = high, 2 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if delta_of(middle, noise_multiplier, releases) <= delta:
            high = middle
        else:
            low = middle
    return high
