"""A channel's signal is its share of what the layers that read it receive; measuring leaves the network as it was."""

import copy

import pytest
import torch
from torch import nn

from spatl.models import build_model
from spatl.selection.signal import channel_signal
from tests.support.networks import CountingNet, GroupedNet, MixedNet, RecurrentNet, ShuffleNet, TiedNet
from tests.support.traces import trace_of


class TwoLayers(nn.Module):
    """Two channels, of 1x and 2x the image, read by a layer with weights 3 and 1, then a predictor."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 2, 1, bias=False)
        self.second = nn.Conv2d(2, 1, 1, bias=False)
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
            self.second.weight.copy_(torch.tensor([3.0, 1.0]).view(1, 2, 1, 1))

    def forward(self, images):
        return self.head(self.second(self.first(images)).mean((2, 3)))


def test_the_shares_of_two_channels_by_hand():
    """Energies through `second`: 3^2 * 1^2 and 1^2 * 2^2 times E[a^2], so 9/13 and 4/13; its own channel alone is 1."""
    model = TwoLayers()
    trace = trace_of(model, ("head",), shape=(1, 1, 4, 4))
    signal = channel_signal(model, trace.layout, trace.readers, torch.randn(8, 1, 4, 4))
    torch.testing.assert_close(signal, torch.tensor([9 / 13, 4 / 13, 1.0], dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [MixedNet, CountingNet, RecurrentNet, ShuffleNet, GroupedNet, TiedNet])
def test_measuring_leaves_mode_buffers_gradients_and_hooks_as_they_were(make, training):
    model = make(num_classes=4, in_channels=1).train(training)
    model.head.requires_grad_(False)
    model.head.eval()
    trace = trace_of(model, (), shape=(1, 1, 8, 8))
    before = copy.deepcopy(model)
    channel_signal(model, trace.layout, trace.readers, torch.randn(6, 1, 8, 8))
    for (name, old), new in zip(before.named_buffers(), dict(model.named_buffers()).values(), strict=True):
        assert torch.equal(old, new), name
    assert [m.training for m in before.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in before.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.slow
def test_the_order_of_the_examples_and_copies_of_them_change_nothing():
    model, cut = build_model("resnet8", num_classes=10, in_channels=1, image_size=8, seed=1)
    trace = trace_of(model, cut, shape=(1, 1, 8, 8))
    images = torch.randn(8, 1, 8, 8)
    signal = channel_signal(model, trace.layout, trace.readers, images)
    again = channel_signal(model, trace.layout, trace.readers, torch.cat([images, images])[torch.randperm(16)])
    torch.testing.assert_close(signal, again, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_each_reading_layer_hands_out_one_whole():
    """In a network without depthwise layers every reader's shares add up to one, its inputs being all channels."""
    model, cut = build_model("resnet8", num_classes=10, in_channels=1, image_size=8, seed=1)
    trace = trace_of(model, cut, shape=(1, 1, 8, 8))
    signal = channel_signal(model, trace.layout, trace.readers, torch.randn(8, 1, 8, 8))
    assert float(signal.sum()) == pytest.approx(len(trace.readers), rel=1e-5)
    assert bool((signal >= 0).all())


@pytest.mark.slow
def test_a_dead_channel_has_none():
    model, cut = build_model("cnn", num_classes=10, in_channels=1, image_size=8, seed=1)
    with torch.no_grad():
        model.conv1.weight[3], model.conv1.bias[3] = 0, 0
    trace = trace_of(model, cut, shape=(1, 1, 8, 8))
    signal = channel_signal(model, trace.layout, trace.readers, torch.randn(8, 1, 8, 8))
    assert signal[3] == 0
    assert bool((signal[[2, 4]] > 0).all())


def test_a_channel_that_nothing_known_reads_gets_the_mean_of_the_others():
    """The logits of a shared predictor travel like any other channel instead of never."""
    model, cut = build_model("cnn", num_classes=10, in_channels=1, image_size=8, seed=1)
    trace = trace_of(model, (), shape=(1, 1, 8, 8))
    signal = channel_signal(model, trace.layout, trace.readers, torch.randn(8, 1, 8, 8))
    logits = trace.layout.groups[-1]
    assert logits.size == 10
    read = signal[: logits.first]
    assert signal[logits.first :].tolist() == pytest.approx([float(read.mean())] * 10)
    assert cut


def test_without_any_reader_all_channels_are_worth_the_same():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    trace = trace_of(model, (), shape=(1, 1, 2, 2))
    assert channel_signal(model, trace.layout, trace.readers, torch.randn(4, 1, 2, 2)).tolist() == [1.0] * 3


def test_a_grouped_convolution_reads_its_inputs_through_its_own_groups_weights():
    model = GroupedNet(num_classes=3, in_channels=1)
    with torch.no_grad():
        model.grouped.weight[:3] = 0  # the outputs of the first of four groups, which reads channels 0 and 1
    trace = trace_of(model, ("head",), shape=(1, 1, 8, 8))
    signal = channel_signal(model, trace.layout, trace.readers, torch.randn(8, 1, 8, 8))
    assert signal[:2].tolist() == [0.0, 0.0]
    assert bool((signal[2:8] > 0).all())
    assert float(signal[:8].sum()) == pytest.approx(1.0)


def test_a_network_that_overflows_gives_finite_signals():
    model = TwoLayers()
    with torch.no_grad():
        model.first.weight.mul_(1e30)
    trace = trace_of(model, ("head",), shape=(1, 1, 4, 4))
    signal = channel_signal(model, trace.layout, trace.readers, 1e10 * torch.randn(4, 1, 4, 4))
    assert bool(signal.isfinite().all())
