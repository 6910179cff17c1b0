"""Tests of moments: what clients say of their profiles, put together, is what all of them together are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.errors import SpatlError
from spatl.saliency.moments import Moments, merged, standardised

clients = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def values_of(sizes, seed):
    """Profiles of clients of these sizes, whose scales lie far apart."""
    draws = torch.Generator().manual_seed(seed)
    return [
        torch.rand(size, 5, generator=draws) * 10.0 ** torch.randint(-6, 4, (5,), generator=draws) + number
        for number, size in enumerate(sizes)
    ]


@given(clients, st.integers(0, 1000))
def test_merged_moments_are_the_pooled_ones(sizes, seed):
    parts = values_of(sizes, seed)
    found, pooled = merged(map(Moments.of, parts)), torch.cat(parts).double()
    assert found.count == len(pooled)
    assert torch.allclose(found.means, pooled.mean(0), rtol=1e-9, atol=0)
    assert torch.allclose(found.squares, (pooled - pooled.mean(0)).square().sum(0), rtol=1e-9, atol=1e-18)


@given(clients, st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_order_of_clients_changes_no_bit(sizes, seed, random):
    parts = [Moments.of(each) for each in values_of(sizes, seed)]
    found = merged(parts)
    random.shuffle(parts)
    again = merged(parts)
    assert torch.equal(found.means, again.means)
    assert torch.equal(found.squares, again.squares)


def test_two_clients_by_hand():
    """1 and 3 on one client, 8 on the other: mean 4, and 9 + 1 + 16 = 26."""
    found = merged([Moments.of(torch.tensor([[1.0], [3.0]])), Moments.of(torch.tensor([[8.0]]))])
    assert (found.count, found.means.tolist(), found.squares.tolist()) == (3, [4.0], [26.0])


def test_standardised_values_have_mean_zero_and_variance_one_but_for_filters_that_do_not_vary():
    values = values_of([40], 1)[0]
    values[:, 2] = 7.0
    z = standardised(values, Moments.of(values))
    assert torch.allclose(z.mean(0), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    expected = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    assert torch.allclose(z.square().mean(0), expected)


def test_no_client_and_clients_of_different_networks_are_refused():
    with pytest.raises(SpatlError, match="at least one client to put together, got none"):
        merged([])
    with pytest.raises(SpatlError, match="different numbers of filters"):
        merged([Moments.of(torch.zeros(1, 2)), Moments.of(torch.zeros(1, 3))])
