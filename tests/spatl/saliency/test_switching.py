"""Tests of filters that are switched off, example by example."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.errors import ModelError
from spatl.saliency.filters import KINDS, filters_of
from spatl.saliency.switching import logits_without
from tests.support.saliency import many_kinds, some_examples


def by_weights(network, images, filters, off):
    """The logits of each example by a network whose weights of its filters are zero."""
    rows = []
    for number, own in enumerate(off):
        other = copy.deepcopy(network)
        with torch.no_grad():
            for layer in filters.layers:
                weight = other.get_parameter(layer.weight)
                weight.mul_(layer.spread(~own[layer.places], weight.shape))
            rows.append(other(images[number : number + 1])[0])
    return torch.stack(rows).detach()


@pytest.mark.slow
@given(st.integers(0, 1000), st.booleans(), st.floats(0, 1))
def test_a_filter_that_is_off_is_one_with_weights_of_zero(seed, transposed, share):
    network, images = many_kinds(seed, transposed=transposed), some_examples(4, seed).inputs
    filters = filters_of(network, tuple(KINDS))
    off = torch.rand(4, filters.num_filters, generator=torch.Generator().manual_seed(seed)) < share
    found = logits_without(network, images, filters, off).double()
    assert torch.allclose(found, by_weights(network, images, filters, off), rtol=1e-5, atol=1e-5)


def test_the_same_filters_for_all_and_none_at_all():
    network, images = many_kinds(), some_examples(4).inputs
    filters = filters_of(network)
    off = torch.zeros(filters.num_filters, dtype=torch.bool)
    assert torch.equal(logits_without(network, images, filters, off), network(images).float())
    off[3] = True
    expected = by_weights(network, images, filters, off.expand(4, -1))
    assert torch.allclose(logits_without(network, images, filters, off).double(), expected, atol=1e-5)
    assert not any(module._forward_hooks for module in network.modules())


class _Patches(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Conv2d(3, 4, 3)

    def forward(self, images):
        halves = torch.cat(images.chunk(2, dim=3))
        return self.mix(halves).mean((2, 3)).reshape(2, len(images), 4).sum(0)


def test_a_layer_that_sees_another_batch_is_named():
    network = _Patches()
    filters = filters_of(network)
    off = torch.eye(4, dtype=torch.bool)[:3]
    with pytest.raises(
        ModelError, match="layer 'mix' is gone through with a batch of 6 where the network has one of 3"
    ):
        logits_without(network, torch.zeros(3, 3, 8, 8), filters, off)


class _Shared(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.second = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.head = torch.nn.Linear(3, 4)

    def forward(self, images):
        return self.head(self.second(self.first(images).relu()).relu().mean((2, 3)))


class _Functional(_Shared):
    def forward(self, images):
        features = torch.nn.functional.conv2d(self.first(images), self.first.weight, self.second.bias)
        return self.head(features.relu().mean((2, 3)))


@pytest.mark.parametrize("kind", [_Shared, _Functional])
def test_filters_that_work_outside_their_layer_are_off_there_too(kind):
    network, images = kind().double(), some_examples(9).inputs
    filters = filters_of(network)
    for off in (torch.eye(3, dtype=torch.bool).repeat(3, 1), ~torch.eye(3, dtype=torch.bool).repeat(3, 1)):
        found = logits_without(network, images, filters, off).double()
        assert torch.allclose(found, by_weights(network, images, filters, off), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(found, network(images), atol=1e-4)
    assert not any(module._forward_hooks for module in network.modules())
