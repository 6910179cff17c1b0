"""What of a network may be cut, and what that costs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spatl.artifacts.cutting import cut_to
from spatl.channels.flops import measure_macs
from spatl.channels.narrowing import cut_data, rebuild
from spatl.channels.prunable import find_prunable
from spatl.channels.selection import Selection
from spatl.errors import ModelError
from tests.support.cuts import CHOICES, EXAMPLE, chosen, dense, images, settled, whatever_is_chosen
from tests.support.networks import BroadNet, GroupedNet, RecurrentNet, ShuffleNet, TiedNet


@whatever_is_chosen
def test_costs_of_a_choice_are_those_of_the_network_it_leaves(name, seed, share):
    network, prunable = dense(name)
    selection = chosen(prunable, seed, share=share)
    small = rebuild(network, cut_data(network, prunable.trace, selection))
    counts = selection.counts(prunable.layout)
    macs = [sum(measure_macs(each, EXAMPLE).values()) for each in (small, network)]
    sizes = [sum(p.numel() for p in each.parameters()) for each in (small, network)]
    assert prunable.trace.flops.ratio(counts) == pytest.approx(macs[0] / macs[1], abs=1e-12)
    assert prunable.parameters.ratio(counts) == pytest.approx(sizes[0] / sizes[1], abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "resnet8", "mobilenet", "broad"])
def test_only_the_logits_are_always_whole_and_nothing_is_doubtful(name):
    _, prunable = dense(name)
    (logits,) = prunable.is_whole.nonzero().squeeze(1).tolist()
    assert prunable.layout.groups[logits].size == 10
    assert prunable.names[logits] in ("classifier", "fc", "head")
    assert prunable.doubtful == {}


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (RecurrentNet, {"conv": "no convolution or linear layer", "rows": "no convolution or linear layer"}),
        (ShuffleNet, {"up": "which of them layer conv reads cannot be told"}),
        (TiedNet, {"stem": "layer first shares", "first": "layer second shares", "second": "layer normed shares"}),
    ],
)
def test_unproved_groups_are_whole_and_named(network, named):
    """Three classes, so that no other group is as wide as the logits."""
    prunable = find_prunable(network(num_classes=3, in_channels=1).eval(), EXAMPLE)
    assert prunable.doubtful.keys() >= named.keys()
    for name, reason in named.items():
        assert reason in prunable.doubtful[name]
        assert bool(prunable.is_whole[prunable.names.index(name)])
    assert "head" not in prunable.doubtful
    nothing = Selection(torch.zeros(prunable.layout.num_channels, dtype=torch.bool))
    kept = prunable.completed(nothing, torch.zeros(prunable.layout.num_channels)).counts(prunable.layout)
    assert torch.equal(kept[prunable.is_whole], prunable.layout.group_sizes[prunable.is_whole])


class Through(nn.Module):
    """Some layer between two convolutions of sixteen channels."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem, self.layer, self.conv = nn.Conv2d(1, 16, 3), layer, nn.Conv2d(16, 9, 1)
        self.head = nn.Linear(9, 3)

    def forward(self, images):
        return self.head(self.conv(self.layer(self.stem(images)).relu()).relu().mean((2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.GroupNorm(16, 16), "layer layer, a GroupNorm, cannot be made narrower"),
        (nn.LayerNorm([16, 6, 6]), "other channels reach layer conv than the graph says"),
        (nn.ConvTranspose2d(16, 16, 2, groups=4, bias=False), "layer layer is a grouped transposed convolution"),
        (nn.ConvTranspose2d(16, 16, 2, groups=16), "other channels reach layer conv than the graph says"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 1)), "layer layer shares or computes its weight"),
    ],
)
def test_layers_that_cannot_be_made_narrower_are_named_and_the_rest_is_cut(layer, reason):
    network = settled(Through(layer))
    prunable = find_prunable(network, EXAMPLE)
    assert prunable.doubtful["stem"] == reason
    assert "conv" not in prunable.doubtful
    difference, small, _ = cut_to(network, prunable, chosen(prunable, 1), images())
    assert difference <= 1e-5
    assert (small.stem.out_channels, small.head.in_features < 9) == (16, True)


@pytest.mark.parametrize(
    "layer",
    [
        nn.InstanceNorm2d(16), nn.InstanceNorm2d(16, affine=True),
        nn.BatchNorm2d(16, affine=False, track_running_stats=False), nn.PReLU(16), nn.ConvTranspose2d(16, 16, 2),
    ],
)  # fmt: skip
def test_layers_of_one_number_per_channel_are_cut_with_them(layer):
    network = settled(Through(layer))
    prunable = find_prunable(network, EXAMPLE)
    assert prunable.doubtful == {}
    _, small, data = cut_to(network, prunable, chosen(prunable, 1), images())
    again = rebuild(network, data)
    for each in (small, again):
        widths = [getattr(each.layer, name, None) for name in ("num_features", "num_parameters", "in_channels")]
        assert [width for width in widths if width is not None] == [each.stem.out_channels]
        assert each.stem.out_channels < 16


class Shared(nn.Module):
    """Two layers with one weight, each followed by a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3)
        self.left, self.right = nn.Conv2d(12, 16, 1), nn.Conv2d(12, 16, 1)
        self.right.weight = self.left.weight
        self.one, self.two = nn.Conv2d(16, 9, 1), nn.Conv2d(16, 9, 1)
        self.head = nn.Linear(9, 3)

    def forward(self, images):
        features = self.stem(images).relu()
        both = self.one(self.left(features).relu()) * self.two(self.right(features).relu())
        return self.head(both.mean((2, 3)))


@pytest.mark.slow
def test_what_a_shared_weight_writes_is_never_cut():
    prunable = find_prunable(settled(Shared()), EXAMPLE)
    assert {"left", "right"} <= prunable.doubtful.keys()


@pytest.mark.slow
@CHOICES
@given(seed=st.integers(0, 2**31), share=st.floats(0.0, 1.0))
def test_a_completed_choice_is_even_in_the_groups_of_a_convolution(seed, share):
    """Twelve outputs and eight inputs in four groups, which a choice without them may leave uneven."""
    prunable = find_prunable(GroupedNet(num_classes=3, in_channels=1).eval(), EXAMPLE)
    draws = torch.Generator().manual_seed(seed)
    mask = torch.rand(prunable.layout.num_channels, generator=draws) < share
    before = mask.clone()
    completed = prunable.completed(Selection(mask), torch.rand(len(mask), generator=draws))
    assert torch.equal(mask, before)
    assert not bool((before & ~completed.mask).any())
    counts = dict(zip(prunable.names, completed.counts(prunable.layout).tolist(), strict=True))
    assert counts["stem"] % 4 == counts["grouped"] % 4 == 0
    assert min(counts.values()) >= 1
    small = rebuild(
        GroupedNet(num_classes=3, in_channels=1),
        cut_data(GroupedNet(num_classes=3, in_channels=1), prunable.trace, completed),
    )
    assert small(EXAMPLE).shape == (1, 3)


def test_what_completes_a_choice_is_worth_most():
    """One channel of the first group is chosen; each other group of the convolution gets the best of its two."""
    prunable = find_prunable(GroupedNet(num_classes=3, in_channels=1).eval(), EXAMPLE)
    stem = prunable.layout.groups[prunable.names.index("stem")]
    mask = torch.ones(prunable.layout.num_channels, dtype=torch.bool)
    mask[stem.first : stem.first + stem.size] = False
    mask[stem.first] = True
    worth = torch.zeros(len(mask), dtype=torch.float64)
    worth[stem.first + torch.tensor([1, 3, 4, 7])] = 1.0
    completed = prunable.completed(Selection(mask), worth).mask[stem.first : stem.first + stem.size]
    assert completed.nonzero().squeeze(1).tolist() == [0, 3, 4, 7]


def test_groups_of_one_name_are_told_apart():
    """A concatenation of two widths added to one: its channels own different amounts, and become two groups."""

    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 12, 3, padding=1)
            self.left, self.right = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 8, 1)
            self.head = nn.Linear(12, 3)

        def forward(self, images):
            both = torch.cat([self.left(images), self.right(images)], 1)
            return self.head((self.stem(images) + both).relu().mean((2, 3)))

    prunable = find_prunable(Added().eval(), EXAMPLE)
    assert prunable.names == ("stem", "stem#2", "head")


@pytest.mark.slow
def test_finding_leaves_the_network_as_it_was_and_needs_parameters():
    network = BroadNet(num_classes=10, in_channels=1).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    find_prunable(network, EXAMPLE)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(module.training for module in network.modules())
    with pytest.raises(ModelError, match="no parameters"):
        find_prunable(nn.Flatten(), EXAMPLE)
