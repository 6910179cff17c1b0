"""Parts of a network, trained in its place: what they hold, what they compute, and what goes back."""

from contextlib import nullcontext
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from spatl.channels.masking import masked_weights
from spatl.channels.selection import Selection
from spatl.channels.subnetworks import SubNetworks
from spatl.channels.trace import EncoderTrace
from spatl.channels.tracing import trace_groups
from spatl.errors import ModelError
from spatl.models.copies import duplicate
from spatl.selection.before import half_of
from tests.support.cuts import CHOICES, EXAMPLE, chosen, dense, images
from tests.support.networks import BroadNet

NETWORKS = (("resnet8", ("fc",)), ("mobilenet", ("classifier",)), ("broad", ("head",)), ("cnn", ()))
"""With the predictor that stays private, of which the encoder's layout has nothing."""

FEW = settings(CHOICES, max_examples=3)


@cache
def parts_of(name: str, predictor: tuple[str, ...]) -> tuple[nn.Module, EncoderTrace, SubNetworks]:
    network, _ = dense(name)
    shared = [own for own, _ in network.named_parameters() if not own.startswith(predictor or ("-",))]
    trace = trace_groups(network, EXAMPLE, parameters=shared)
    return network, trace, SubNetworks(network, EXAMPLE, trace)


def every_network(test):
    drawn = FEW(pytest.mark.parametrize(("name", "predictor"), NETWORKS)(test))
    return pytest.mark.slow(drawn)


def some_part(name, predictor, seed):
    network, trace, parts = parts_of(name, predictor)
    return network, trace, parts, Selection(chosen(parts.prunable, seed).mask, closed=True)


given_seed = given(seed=st.integers(0, 2**31))


@every_network
@given_seed
def test_a_part_of_the_encoder_is_what_its_closed_selection_keeps(name, predictor, seed):
    network, trace, parts, selection = some_part(name, predictor, seed)
    small = parts.cut(network, selection)
    named = dict(small.network.named_parameters())
    kept = torch.cat([named[own].detach().reshape(-1) for own in trace.layout.shapes])
    assert torch.equal(kept, selection.take(trace.layout.flatten(dict(network.named_parameters())), trace.layout))
    places = torch.cat([
        start + (small.positions[own].reshape(-1) if own in small.positions else torch.arange(shape.numel()))
        for (own, shape), start in zip(trace.layout.shapes.items(), trace.layout.starts, strict=False)
    ])  # fmt: skip
    assert torch.equal(places, selection.entries(trace.layout))
    assert len(places) < trace.layout.num_entries


@every_network
@given_seed
def test_a_part_computes_and_learns_what_the_network_does_when_nothing_reads_the_rest(name, predictor, seed):
    """In training mode, with the batch's statistics: the output, and each gradient of what is left, in float64.

    In float32 sums of another order tip a maximum now and then, which a few entries of a gradient show.
    """
    network, _trace, parts, selection = some_part(name, predictor, seed)
    whole = duplicate(network).double().train()
    small = parts.cut(whole, selection)
    assert small.network.training
    inputs = images(8, seed % 1000).double()
    masked = {
        own: weight.requires_grad_()
        for own, weight in masked_weights(whole, parts.prunable.trace.readers, selection).items()
    }
    expected = functional_call(whole, masked, (inputs,))
    found = small.network(inputs)
    torch.testing.assert_close(found, expected)
    expected.square().sum().backward()
    found.square().sum().backward()
    gradients = {own: masked[own].grad if own in masked else each.grad for own, each in whole.named_parameters()}
    learned = dict(small.network.named_parameters())
    for own, gradient in small.of(gradients).items():
        least = 1e-9 * float(gradient.abs().max())
        torch.testing.assert_close(learned[own].grad, gradient, rtol=1e-6, atol=max(least, 1e-9))


@every_network
@given_seed
def test_what_a_part_lacks_keeps_its_bits_when_it_is_put_back(name, predictor, seed):
    network, _trace, parts, selection = some_part(name, predictor, seed)
    whole = duplicate(network).train()
    before = {own: each.clone() for own, each in whole.state_dict().items()}
    small = parts.cut(whole, selection)
    small.network(images(8))  # which moves running statistics
    with torch.no_grad():
        for parameter in small.network.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(each, before[own]) for own, each in whole.state_dict().items())
    small.put_back_(whole)
    after, trained = whole.state_dict(), small.network.state_dict()
    for own, each in after.items():
        where = small.positions.get(own, torch.arange(each.numel()).view(each.shape)).reshape(-1)
        assert torch.equal(each.reshape(-1)[where], trained[own].reshape(-1))
        rest = torch.ones(each.numel(), dtype=torch.bool)
        rest[where] = False
        assert torch.equal(each.reshape(-1)[rest], before[own].reshape(-1)[rest])


@pytest.mark.slow
def test_a_private_predictor_loses_the_columns_of_what_it_cannot_read():
    """ResNet-8's last group has 64 channels, which `fc` reads: of two of them its weight is [10, 2], columns 3, 60."""
    network, trace, parts = parts_of("resnet8", ("fc",))
    mask = torch.ones(trace.layout.num_channels, dtype=torch.bool)
    read = parts.prunable.trace.readers["fc"]
    mask[read] = False
    mask[read[[3, 60]]] = True
    small = parts.cut(network, Selection(mask, closed=True))
    weight = dict(network.named_parameters())["fc.weight"]
    assert torch.equal(small.network.fc.weight, weight[:, [3, 60]])
    assert small.positions["fc.weight"][1].tolist() == [64 + 3, 64 + 60]
    assert small.network.fc.bias.shape == (10,)


@pytest.mark.slow
def test_the_logits_of_a_shared_predictor_always_stay():
    _network, trace, parts = parts_of("cnn", ())
    whole = parts.prunable.whole_channels
    assert int(whole.sum()) == 10
    assert trace.layout.owner_in(slice(trace.layout.num_entries - 10, trace.layout.num_entries)).unique().tolist() == (
        whole.nonzero().squeeze(1).tolist()
    )


class _CountsChannels(BroadNet):
    """A network whose outputs depend on a number of channels."""

    def forward(self, images):
        return super().forward(images) * self.left.out_channels


@pytest.mark.slow
def test_a_network_that_depends_on_a_number_of_channels_is_refused_in_a_line():
    for made, is_refused in ((BroadNet, False), (_CountsChannels, True)):
        network = made(num_classes=10, in_channels=1)
        trace = trace_groups(network, EXAMPLE, parameters=[own for own, _ in network.named_parameters()])
        parts = SubNetworks(network, EXAMPLE, trace)
        expected = (
            pytest.raises(ModelError, match="the model cannot be trained in part") if is_refused else nullcontext()
        )
        with expected:
            parts.check(half_of(parts.prunable))
