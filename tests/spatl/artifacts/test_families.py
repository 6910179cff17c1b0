"""Networks that reorder, split or mix channels are cut where that is proved, and compute what the masked ones do."""

import pytest
import torch
from torch import nn

from spatl.artifacts.cutting import LARGEST_DIFFERENCE, cut_to
from spatl.channels.narrowing import rebuild
from spatl.channels.prunable import find_prunable
from spatl.models import add_residual_, build_model
from tests.support.cuts import EXAMPLE, SIZE, chosen, images, settled
from tests.support.families import FAMILIES

WHOLE = {"BareWeight", "C2f", "ChannelsLastFlatten", "UsedTwiceFlipped"}
"""Families of which nothing is proved."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_cut_where_it_can_be_and_stays_equal(name):
    torch.manual_seed(0)
    network = settled(FAMILIES[name]())
    prunable = find_prunable(network, EXAMPLE)
    narrower = False
    for seed in range(3):
        difference, small, data = cut_to(network, prunable, chosen(prunable, seed, share=0.3), images())
        assert difference <= LARGEST_DIFFERENCE
        again = rebuild(network, data)
        again.load_state_dict(small.state_dict())
        narrower |= bool(data["layers"])
    assert narrower == (name not in WHOLE)
    assert (name in WHOLE) <= bool(prunable.doubtful)


@pytest.mark.slow
def test_both_parts_of_a_residual_predictor_lose_the_same_inputs():
    network, cut = build_model("resnet8", num_classes=10, in_channels=1, image_size=SIZE, seed=1)
    add_residual_(network, cut, EXAMPLE)
    nn.init.normal_(network.fc.private.weight)
    network = settled(network)
    prunable = find_prunable(network, EXAMPLE)
    selection = chosen(prunable, 1)
    difference, small, _ = cut_to(network, prunable, selection, images())
    assert difference <= LARGEST_DIFFERENCE
    assert small.fc.shared.in_features == small.fc.private.in_features < 64
    assert small.fc.shared.out_features == small.fc.private.out_features == 10
