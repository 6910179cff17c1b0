"""Tests of input maps."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from spatl.data import Examples
from spatl.saliency.filters import filters_of
from spatl.saliency.maps import input_maps
from spatl.saliency.moments import Moments, standardised
from spatl.saliency.profiles import profiles
from tests.support.saliency import double_loop, many_kinds, some_examples


def smooth(network):
    """The network without kinks, so that differences of gradients say what their derivative is."""
    network.relu = nn.Softplus()
    return network


def test_a_map_says_how_the_cosine_with_the_boosted_profile_changes_with_a_pixel():
    """By central differences of the double loop's profiles, at three pixels, the largest of three channels each."""
    network, examples = smooth(many_kinds()), some_examples(1)
    filters = filters_of(network)
    moments = Moments.of(profiles(network, some_examples(30, seed=9), filters).absolute)
    maps = input_maps(network, examples, filters, moments, k=5)

    def z_of(images):
        return standardised(double_loop(network, Examples(images, examples.targets), filters)[0][0].detach(), moments)

    boosted = z_of(examples.inputs)
    boosted[boosted.topk(5).indices] *= 100
    for row, column in ((0, 0), (3, 4), (7, 2)):
        slopes = []
        for channel in range(3):
            cosines = []
            for step in (1e-5, -1e-5):
                moved = examples.inputs.clone()
                moved[0, channel, row, column] += step
                cosines.append(float(F.cosine_similarity(z_of(moved), boosted, dim=0)))
            slopes.append(abs(cosines[0] - cosines[1]) / 2e-5)
        assert abs(float(maps.salient[0, row, column]) - max(slopes)) <= 1e-4 * max(slopes) + 1e-9


def test_the_other_map_is_the_plain_gradient_and_the_network_stays():
    network, examples = many_kinds(), some_examples(3)
    filters, before = filters_of(network), copy.deepcopy(network.state_dict())
    maps = input_maps(network, examples, filters, Moments.of(profiles(network, examples, filters).absolute))
    images = examples.inputs.clone().requires_grad_()
    F.cross_entropy(network(images), examples.targets, reduction="sum").backward()
    assert torch.allclose(maps.gradient.double(), images.grad.abs().amax(1), atol=1e-6)
    assert maps.salient.shape == (3, 8, 8)
    assert all(torch.equal(before[name], each) for name, each in network.state_dict().items())
