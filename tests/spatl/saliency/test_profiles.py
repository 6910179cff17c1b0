"""Tests of profiles: every way to take them is the plain double loop's."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spatl.data import Examples
from spatl.errors import ModelError
from spatl.saliency import profiles as module
from spatl.saliency.filters import CONVOLUTION, KINDS, LINEAR, NORMALISATION, filters_of
from spatl.saliency.maps import input_maps
from spatl.saliency.moments import Moments
from spatl.saliency.profiles import profiles, profiles_one_by_one
from spatl.saliency.repair import example_gradients, filter_weights
from spatl.training.calibration import calibrated
from tests.support.saliency import double_loop, many_kinds, some_examples


def assert_close(found, expected):
    """Whether both parts of profiles are these, to 1e-6 of the largest value."""
    for own, other in zip((found.absolute, found.signed), expected, strict=True):
        assert (own.double() - other).abs().max() <= 1e-6 * other.abs().max()


@pytest.mark.slow
@given(seed=st.integers(0, 1000), number=st.integers(1, 7), batch_size=st.integers(1, 8), inplace=st.booleans())
def test_profiles_are_those_of_a_double_loop(seed, number, batch_size, inplace):
    network, examples = many_kinds(seed, inplace=inplace), some_examples(number, seed)
    filters = filters_of(network, tuple(KINDS))
    expected = double_loop(network, examples, filters)
    found = profiles(network, examples, filters, batch_size=batch_size)
    assert_close(found, expected)
    logits = network(examples.inputs)
    assert torch.equal(found.predictions, logits.argmax(1))
    assert torch.allclose(found.losses.double(), F.cross_entropy(logits, examples.targets, reduction="none"), atol=1e-5)


@pytest.fixture
def one_by_one(monkeypatch):
    """The number of calls of the plain way, which a check of the first example makes once."""
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return profiles_one_by_one(*arguments)

    monkeypatch.setattr(module, "profiles_one_by_one", counted)
    return calls


def test_layers_with_a_rule_are_taken_together(one_by_one):
    network = many_kinds()
    profiles(network, some_examples(6), filters_of(network, tuple(KINDS)), batch_size=2)
    assert len(one_by_one) == 1


class _Twice(nn.Module):
    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.mix = nn.Conv2d(3, 3, 3, padding=1).double()
        self.head = nn.Linear(3, 4).double()

    def forward(self, images):
        return self.head(self.mix(self.mix(self.first(images))).relu().mean((2, 3)))


class _Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 3, padding=1).double()
        self.head = nn.Linear(3, 4).double()

    def forward(self, images):
        return self.head(F.conv2d(self.mix(images), self.mix.weight).relu().mean((2, 3)))


class _OwnStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 5, 3).double()
        self.norm = nn.BatchNorm2d(5, track_running_stats=False).double()
        self.head = nn.Linear(5, 4).double()

    def forward(self, images):
        return self.head(self.norm(self.mix(images)).relu().mean((2, 3)))


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(lambda: many_kinds(transposed=True), id="a transposed convolution has no rule"),
        pytest.param(lambda: _Twice(nn.Identity()), id="a layer is gone through twice"),
        pytest.param(_Functional, id="a weight is used without its layer"),
        pytest.param(_OwnStatistics, id="examples of a batch meet"),
    ],
)
def test_a_network_that_cannot_be_taken_together_has_the_right_profiles_too(network, one_by_one):
    network = network().eval()
    examples, filters = some_examples(5), filters_of(network)
    assert_close(profiles(network, examples, filters, batch_size=3), double_loop(network, examples, filters))
    assert len(one_by_one) >= 2


def test_a_frozen_network_has_profiles_and_stays_as_it_was():
    network = many_kinds().requires_grad_(False).train()
    network.norm.running_mean.fill_(0.3)
    before = copy.deepcopy(network.state_dict())
    filters, examples = filters_of(network), some_examples(4)
    found = profiles(network, examples, filters)
    assert all(module.training for module in network.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(before[name], each) for name, each in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    trained = copy.deepcopy(network).requires_grad_().eval()
    assert_close(found, double_loop(trained, examples, filters))


def test_an_offset_on_the_logits_counts():
    network, examples = many_kinds(), some_examples(4)
    filters = filters_of(network)
    with calibrated(network, torch.tensor([0.0, 3.0, -2.0, 1.0])):
        found, expected = profiles(network, examples, filters), double_loop(network, examples, filters)
    assert_close(found, expected)
    assert not torch.allclose(profiles(network, examples, filters).absolute, found.absolute)


def test_the_signed_part_is_what_the_loss_falls_by_as_a_filter_fades():
    """(L(w) - L((1 - h) w_k)) / h, for h to 0, is the sum of dL/dw * w over filter k."""
    network, examples = many_kinds(), some_examples(1)
    filters = filters_of(network, (CONVOLUTION, LINEAR, NORMALISATION))
    signed = profiles(network, examples, filters).signed[0]
    parameters, h = dict(network.named_parameters()), 1e-6
    for layer in filters.layers:
        for place in (0, layer.num_filters - 1):
            fading = torch.ones(layer.num_filters, dtype=torch.float64)
            losses = []
            for keep in (1 + h, 1 - h):
                other = copy.deepcopy(network)
                fading[place] = keep
                with torch.no_grad():
                    weight = parameters[layer.weight] * layer.spread(fading, parameters[layer.weight].shape)
                    other.get_parameter(layer.weight).copy_(weight)
                    losses.append(float(F.cross_entropy(other(examples.inputs), examples.targets)))
            assert signed[layer.start + place] == pytest.approx((losses[0] - losses[1]) / (2 * h), abs=1e-6)


def test_no_example_and_a_network_that_has_diverged_are_refused():
    network = many_kinds()
    with pytest.raises(ModelError, match="at least one example"):
        profiles(network, Examples(torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64)), filters_of(network))
    with torch.no_grad():
        network.stem.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        profiles(network, some_examples(2), filters_of(network))


def drawn(network: nn.Module) -> nn.Module:
    """The network in eval mode, with parameters that are the same in every process."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in network.parameters():
            each.copy_(torch.randn(each.shape, generator=draws, dtype=torch.float64) * 0.4)
    return network.eval()


class _Faint(_Functional):
    """The layer `mix` hardly matters, beside another that does."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Conv2d(3, 3, 3, padding=1).double()

    def forward(self, images):
        faint = self.mix(images) + F.conv2d(images.flip(1), self.mix.weight, padding=1)
        return self.head((self.main(images) + 1e-4 * faint).mean((2, 3)))


def test_a_weight_used_without_its_layer_is_found_out_in_a_layer_with_small_gradients():
    network, examples = drawn(_Faint()), some_examples(5)
    filters = filters_of(network)
    expected = double_loop(network, examples, filters)[0]
    found = profiles(network, examples, filters).absolute
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=0)


def test_an_example_that_the_network_is_sure_of_is_not_what_profiles_are_checked_by():
    network, examples = drawn(_Functional()), some_examples(5)
    images, labels = examples.inputs.clone(), examples.targets.clone()
    images[0] *= 1e6
    labels[0] = network(images[:1]).argmax()
    sure, filters = Examples(images, labels), filters_of(network)
    assert not double_loop(network, Examples(images[:1], labels[:1]), filters)[0].any()
    assert_close(profiles(network, sure, filters), double_loop(network, sure, filters))


class _WithUnused(_Functional):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Conv2d(3, 2, 3)


def test_the_filters_of_a_layer_that_is_not_used_have_profiles_of_zero():
    network, examples = drawn(_WithUnused()), some_examples(4)
    filters = filters_of(network)
    found, used = profiles(network, examples, filters), filters_of(_Functional())
    assert not found.absolute[:, -2:].any()
    assert not found.signed[:, -2:].any()
    expected = double_loop(network, examples, used)
    assert_close(replace(found, absolute=found.absolute[:, :-2], signed=found.signed[:, :-2]), expected)
    weights = filter_weights(network, filters)
    gradients = example_gradients(network, examples.inputs[0], examples.targets[0], weights)
    assert not gradients["spare.weight"].any()
    assert gradients["mix.weight"].any()
    maps = input_maps(network, examples, filters, Moments.of(found.absolute), k=2)
    assert maps.salient.isfinite().all()
    assert maps.salient.any()
