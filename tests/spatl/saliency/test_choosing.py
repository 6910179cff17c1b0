"""Filters that are blamed, and those of the controls."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spatl.errors import SpatlError
from spatl.saliency.choosing import CONTROLS, check_k, most_salient, random_in_the_same_layers
from spatl.saliency.filters import filters_of

NETWORK = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, 3))
FILTERS = filters_of(NETWORK)


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_most_salient_have_the_highest_scores_and_of_equal_ones_the_first():
    scores = torch.tensor([[0.0, 3.0, 1.0, 2.0], [1.0, 1.0, 0.0, 1.0]])
    assert most_salient(scores, 2).tolist() == [[False, True, False, True], [True, True, False, False]]
    assert CONTROLS["least salient"](scores, 2, FILTERS, draw(1)).tolist() == [
        [True, False, True, False], [True, False, True, False],
    ]  # fmt: skip


@given(st.integers(1, FILTERS.num_filters), st.integers(1, 4), st.integers(0, 999))
def test_every_way_chooses_k_filters_of_each_example(k, number, seed):
    scores = torch.rand(number, FILTERS.num_filters, generator=draw(seed))
    for choose in CONTROLS.values():
        chosen = choose(scores, k, FILTERS, draw(seed))
        assert chosen.dtype == torch.bool
        assert chosen.sum(1).tolist() == [k] * number
        assert torch.equal(chosen, choose(scores, k, FILTERS, draw(seed)))


@given(st.integers(1, FILTERS.num_filters), st.integers(0, 999))
def test_the_control_of_the_same_layers_has_as_many_in_each_as_the_most_salient(k, seed):
    scores = torch.rand(3, FILTERS.num_filters, generator=draw(seed))
    salient, control = most_salient(scores, k), random_in_the_same_layers(scores, k, FILTERS, draw(seed + 1))
    for layer in FILTERS.layers:
        assert torch.equal(salient[:, layer.places].sum(1), control[:, layer.places].sum(1))


def test_random_filters_are_drawn_evenly():
    """Of 4000 draws of 3 among 10, each filter has 1200 in the mean; five standard deviations are 145."""
    chosen = CONTROLS["random"](torch.zeros(4000, 10), 3, FILTERS, draw(1))
    assert (chosen.sum(0) - 1200).abs().max() < 145


@pytest.mark.parametrize("k", [0, 11])
def test_a_number_of_filters_that_there_is_not_is_refused(k):
    with pytest.raises(SpatlError, match=rf"must be in \[1, 10\], got {k}"):
        check_k(k, FILTERS)
