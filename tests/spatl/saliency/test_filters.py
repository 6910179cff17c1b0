"""Tests of which filters a network has."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from spatl.errors import ModelError
from spatl.saliency.filters import CONVOLUTION, LINEAR, NORMALISATION, filters_of, layer_names
from tests.support.saliency import many_kinds


def test_filters_are_numbered_through_the_layers_in_the_order_of_the_modules():
    filters = filters_of(many_kinds())
    assert [(layer.name, layer.start, layer.num_filters) for layer in filters.layers] == [
        ("stem", 0, 8), ("depthwise", 8, 8), ("pointwise", 16, 12), ("grouped", 28, 6),
    ]  # fmt: skip
    assert filters.num_filters == 34
    assert layer_names(filters, [0, 8, 33]) == ["stem[0]", "depthwise[0]", "grouped[5]"]
    assert filters.layer_of.tolist() == [0] * 8 + [1] * 8 + [2] * 12 + [3] * 6


def test_other_kinds_of_layers_are_an_option():
    filters = filters_of(many_kinds(), (CONVOLUTION, LINEAR, NORMALISATION))
    assert [layer.name for layer in filters.layers] == [
        "stem", "norm", "depthwise", "pointwise", "group", "grouped", "head"
    ]  # fmt: skip


def test_a_shared_weight_counts_once_and_a_computed_one_not_at_all():
    convolution = nn.Conv2d(3, 3, 3)
    tied = nn.Conv2d(3, 3, 3)
    tied.weight = convolution.weight
    filters = filters_of(nn.Sequential(convolution, tied, weight_norm(nn.Conv2d(3, 5, 3)), nn.Conv2d(5, 2, 1)))
    assert [layer.name for layer in filters.layers] == ["0", "3"]


def test_the_rows_of_a_transposed_grouped_weight_make_one_output_channel_each():
    """With the weights of filter k set to zero, channel k is its bias everywhere, and no other channel changes."""
    layer = nn.ConvTranspose2d(6, 6, 3, groups=3)
    filters = filters_of(nn.Sequential(layer))
    (part,) = filters.layers
    images = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    before = layer(images)
    for number in range(6):
        keep = torch.ones(6)
        keep[number] = 0
        weight = layer.weight * part.spread(keep, layer.weight.shape)
        after = nn.functional.conv_transpose2d(images, weight, layer.bias, groups=3)
        others = [each for each in range(6) if each != number]
        assert torch.equal(after[:, number], layer.bias[number].expand_as(after[:, number]))
        assert torch.allclose(after[:, others], before[:, others])


@pytest.mark.parametrize("transposed", [False, True])
def test_spread_puts_a_value_where_rows_finds_it(transposed):
    network = many_kinds(transposed=transposed)
    parameters = dict(network.named_parameters())
    for layer in filters_of(network).layers:
        values = torch.arange(1.0, 1 + layer.num_filters)
        rows = layer.rows(layer.spread(values, parameters[layer.weight].shape))
        assert torch.equal(rows, values[:, None].expand_as(rows))


def test_a_network_without_convolutions_is_refused_and_told_what_was_expected():
    with pytest.raises(ModelError, match="expected a network with a layer of the kind convolution, got Sequential"):
        filters_of(nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(
        ModelError, match="filters are of the kinds convolution, linear, normalisation, got 'attention'"
    ):
        filters_of(nn.Sequential(nn.Linear(3, 2)), ("attention",))
