"""A cut network computes what the masked one does, and plain data make it anew."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.func import functional_call

from spatl.artifacts.cutting import LARGEST_DIFFERENCE, cut_to
from spatl.channels.masking import masked_weights
from spatl.channels.narrowing import cut_data, rebuild
from spatl.errors import ModelError
from spatl.models import build_model
from tests.support.cuts import EXAMPLE, SIZE, chosen, dense, images, whatever_is_chosen
from tests.support.networks import BroadNet


@whatever_is_chosen
def test_a_cut_network_equals_the_masked_one_whatever_is_chosen(name, seed, share):
    network, prunable = dense(name)
    before = copy.deepcopy(network.state_dict())
    selection = chosen(prunable, seed, share=share)
    difference, small, data = cut_to(network, prunable, selection, images())
    assert difference <= LARGEST_DIFFERENCE
    with torch.no_grad():
        masked = functional_call(network, masked_weights(network, prunable.trace.readers, selection), (images(seed=5),))
        assert (small(images(seed=5)) - masked).abs().max() <= LARGEST_DIFFERENCE * masked.abs().max()
    sizes = [sum(p.numel() for p in each.parameters()) for each in (small, network)]
    assert sizes[0] < sizes[1] or bool(selection.mask.all())
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    again = rebuild(network, json.loads(json.dumps(data)))
    again.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert torch.equal(again(images()), small(images()))


@pytest.mark.slow
def test_a_broad_network_of_a_users_own_is_cut_and_its_layers_say_so():
    network, prunable = dense("broad")
    small = rebuild(network, cut_data(network, prunable.trace, chosen(prunable, 1)))
    widths = dict(small.named_modules())
    shapes = {name: tensor.shape for name, tensor in small.state_dict().items()}
    assert widths["stem"].out_channels == shapes["stem.weight"][0] < 24
    assert widths["depthwise"].groups == widths["depthwise"].in_channels == shapes["stem.weight"][0]
    assert widths["norm"].num_features == len(small.norm.running_mean) == shapes["norm.weight"][0]
    assert widths["grouped"].groups == 4
    assert widths["grouped"].in_channels == widths["left"].out_channels + widths["right"].out_channels
    assert shapes["grouped.weight"][1] == widths["grouped"].in_channels // 4
    assert widths["plain"].num_features == shapes["scale"][1] == widths["grouped"].out_channels
    assert list(shapes["up.weight"][:2]) == [widths["up"].in_channels, widths["up"].out_channels]
    assert widths["slope"].num_parameters == widths["up"].out_channels
    assert widths["hidden"].in_features == 4 * widths["up"].out_channels
    assert widths["head"].out_features == 10


def test_the_data_of_a_cut_fit_a_network_with_other_weights():
    network, prunable = dense("cnn")
    _, small, data = cut_to(network, prunable, chosen(prunable, 2), images())
    other, _ = build_model("cnn", num_classes=10, in_channels=1, image_size=SIZE, seed=9)
    again = rebuild(other, data)
    assert not torch.equal(again.conv1.weight, small.conv1.weight)
    again.load_state_dict(small.state_dict())
    assert torch.equal(again.eval()(EXAMPLE), small(EXAMPLE))


@pytest.mark.slow
def test_what_is_frozen_stays_so():
    torch.manual_seed(0)
    network = BroadNet(num_classes=10, in_channels=1)
    network.stem.weight.requires_grad_(False)
    _, prunable = dense("broad")
    small = rebuild(network, cut_data(network, prunable.trace, chosen(prunable, 1)))
    assert not small.stem.weight.requires_grad
    assert small.stem.bias.requires_grad


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "must have the entries 'layers' and 'parameters'"),
        ({"layers": {"none": {"outputs": [0]}}, "parameters": {}}, "'none' is no layer"),
        ({"layers": {"conv1": {"widths": [0]}}, "parameters": {}}, "'conv1' is no layer"),
        ({"layers": {"conv1": {"outputs": [0, 32]}}, "parameters": {}}, r"conv1.outputs must be ascending .* below 32"),
        ({"layers": {"conv1": {"outputs": [1, 0]}}, "parameters": {}}, "conv1.outputs must be ascending"),
        ({"layers": {"conv1": {"outputs": []}}, "parameters": {}}, "conv1.outputs must be ascending"),
        ({"layers": {"conv1": {"outputs": "01"}}, "parameters": {}}, "conv1.outputs must be ascending"),
        ({"layers": {"conv1": {"width": 8}}, "parameters": {}}, "'conv1' cannot be set to the width 8"),
        ({"layers": {}, "parameters": {"conv1.none": {"dimension": 0, "kept": [0]}}}, "no parameter 'conv1.none'"),
        ({"layers": {}, "parameters": {"conv1.bias": {"dimension": 1, "kept": [0]}}}, "no dimension 1"),
    ],
)
def test_data_that_do_not_fit_are_one_clear_error(data, message):
    network, _ = dense("cnn")
    with pytest.raises(ModelError, match=message):
        rebuild(network, data)


def test_groups_of_different_widths_are_refused():
    network = nn.Sequential(nn.Conv2d(4, 8, 1, groups=2))
    with pytest.raises(ModelError, match="groups of different widths"):
        rebuild(network, {"layers": {"0": {"outputs": [0, 1, 2, 4]}}, "parameters": {}})
    depthwise = nn.Sequential(nn.Conv2d(4, 4, 1, groups=4))
    with pytest.raises(ModelError, match="the same outputs and inputs"):
        rebuild(depthwise, {"layers": {"0": {"outputs": [0, 1], "inputs": [0, 2]}}, "parameters": {}})
