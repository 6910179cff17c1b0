"""One set of channels for all clients: what is salient, and what the budget leaves of it."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from spatl.channels.costs import Budget
from spatl.channels.layout import Labels
from spatl.channels.masking import masked_weights
from spatl.channels.selection import Selection
from spatl.channels.tracing import trace_groups
from spatl.data import Examples
from spatl.errors import BudgetError, UpdateRejected
from spatl.models.resnet import ResNet
from spatl.selection.common_mask import channel_saliency, check_static_budget, common_selection
from spatl.wire.registration import pack_saliency, unpack_saliency
from tests.support.federations import blueprint_of, tiny_config
from tests.support.layouts import interleaved_layout
from tests.support.networks import GroupedNet, MixedNet, TiedNet


def tiny_resnet(*, num_classes, in_channels):
    return ResNet(blocks_per_stage=1, num_classes=num_classes, in_channels=in_channels, width=0.5)


TINY = blueprint_of(tiny_config(method="ssfl"))


def test_saliency_is_gradient_times_weight_added_up_over_a_channel():
    """A linear classifier on one example (1, 2) of class 0, with equal logits: w_k has the gradient (p_k - y_k) (1, 2).

    With p = 1/2 each: class 0: |-1/2 * 1 * w_00| + |-1/2 * 2 * w_01| = 0.5 * 2 + 1 * 1 = 2; class 1 likewise, with the
    same weights, 2.
    """
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[2.0, 1.0], [2.0, 1.0]]))
    layout = replace(interleaved_layout([(2, 2)]), owners=(Labels(torch.tensor([0])), Labels(torch.tensor([1]))))
    examples = Examples(torch.tensor([1.0, 2.0]).view(1, 1, 1, 2), torch.tensor([0]))
    saliency = channel_saliency(model, {"1.weight": model[1].weight}, layout, examples)
    assert saliency.tolist() == pytest.approx([2.0, 2.0])


def test_measuring_leaves_the_network_as_it_was():
    torch.manual_seed(0)
    model = MixedNet(num_classes=3, in_channels=1).train()
    before = copy.deepcopy(model.state_dict())
    layout = interleaved_layout([(1, sum(p.numel() for p in model.parameters()))])
    examples = Examples(torch.randn(8, 1, 8, 8), torch.randint(3, (8,)))
    saliency = channel_saliency(model, dict(model.named_parameters()), layout, examples)
    assert saliency.shape == (1,)
    assert float(saliency) > 0
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


saliencies = st.lists(
    st.lists(st.floats(0, 100, width=32), min_size=TINY.layout.num_channels, max_size=TINY.layout.num_channels),
    min_size=1,
    max_size=4,
)


@pytest.mark.slow
@given(values=saliencies, keep_ratio=st.floats(0.25, 1.0), examples=st.data())
def test_the_common_selection_meets_the_budget_whatever_clients_say_and_in_whatever_order(values, keep_ratio, examples):
    saliency = {client: torch.tensor(each) for client, each in enumerate(values)}
    numbers = {client: examples.draw(st.integers(1, 100)) for client in saliency}
    budget = Budget("keep_ratio", keep_ratio)
    selection = common_selection(saliency, numbers, TINY.costs, budget)
    assert selection.keep_ratio(TINY.layout) <= keep_ratio
    assert bool((selection.counts(TINY.layout) >= 1).all())
    backwards = dict(reversed(saliency.items()))
    assert torch.equal(common_selection(backwards, numbers, TINY.costs, budget).mask, selection.mask)


def test_clients_count_by_their_examples():
    """Two clients disagree on two channels of the first group; the one with more examples prevails."""
    one, other = torch.full((TINY.layout.num_channels,), 1e-6), torch.full((TINY.layout.num_channels,), 1e-6)
    one[0], other[1] = 1.0, 1.0
    floor = 26 + 26 + 5 + 2 * 10  # of the 1,140 entries: a filter, one that reads it, a unit of both, the classes
    budget = Budget("keep_ratio", (floor + 1) / 1140)
    for weights, winner in (((10, 1), 0), ((1, 10), 1)):
        selection = common_selection({0: one, 1: other}, dict(enumerate(weights)), TINY.costs, budget)
        assert bool(selection.mask[winner])


@given(size=st.floats(10.0, 2.0**90, width=32), examples=st.integers(1, 5))
def test_whoever_says_that_its_channels_matter_without_end_does_not_choose_for_all(size, examples):
    """One of five clients wants channel 1, with any weight up to the others' and saliencies of any size."""
    honest, liar = torch.full((TINY.layout.num_channels,), 1e-6), torch.full((TINY.layout.num_channels,), 1e-6)
    honest[0], liar[1] = 1.0, size
    saliency, numbers = dict.fromkeys(range(5), honest) | {5: liar}, dict.fromkeys(range(5), 6) | {5: examples}
    budget = Budget("keep_ratio", (26 + 26 + 5 + 2 * 10 + 1) / 1140)
    selection = common_selection(saliency, numbers, TINY.costs, budget)
    assert bool(selection.mask[0])
    assert not bool(selection.mask[1])


@given(values=st.lists(st.floats(0, 2.0**99, width=32), min_size=12, max_size=12))
def test_saliency_comes_through_the_wire(values):
    layout = interleaved_layout([(1, 3), (7, 4), (4, 2)])
    saliency = torch.tensor(values)
    assert torch.equal(unpack_saliency(pack_saliency(saliency), layout), saliency)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0, 2e30])
def test_saliency_that_is_no_number_from_zero_is_refused(bad):
    layout = interleaved_layout([(1, 3), (7, 4)])
    with pytest.raises(UpdateRejected, match="finite numbers from 0"):
        unpack_saliency(pack_saliency(torch.tensor([bad] + [1.0] * 7)), layout)


@pytest.mark.slow
@pytest.mark.parametrize("make", [MixedNet, GroupedNet, TiedNet, tiny_resnet])
def test_what_is_closed_is_the_network_without_the_channels_that_are_gone(make):
    """Zeroing all that stays behind gives the logits of a network whose layers do not read what is gone."""
    torch.manual_seed(1)
    model = make(num_classes=3, in_channels=1).eval()
    images = torch.randn(4, 1, 8, 8)
    parameters = dict(model.named_parameters())
    trace = trace_groups(model, images, parameters=list(parameters))
    read = torch.zeros(trace.layout.num_channels, dtype=torch.bool)
    for channels in trace.readers.values():
        read[channels[channels >= 0]] = True
    draw = torch.Generator().manual_seed(2)
    mask = ~read | (torch.rand(len(read), generator=draw) < 0.6)
    selection = Selection(mask, closed=True)
    entries = selection.entries(trace.layout)
    assert 0 < len(entries) < len(Selection(mask).entries(trace.layout)) < trace.layout.num_entries

    expected = functional_call(model, masked_weights(model, trace.readers, selection), (images,))
    vector = trace.layout.flatten(parameters)
    smaller = torch.zeros_like(vector).index_copy_(0, entries, vector[entries])
    torch.testing.assert_close(functional_call(model, trace.layout.unflatten(smaller), (images,)), expected)


def test_the_smallest_budget_that_is_named_suffices_and_less_does_not():
    budget = Budget("keep_ratio", 0.01)
    with pytest.raises(BudgetError, match=r"raise it to at least 0\.0676") as caught:
        check_static_budget(budget, TINY.costs)
    smallest = float(str(caught.value).rsplit(" ", 1)[1])
    check_static_budget(Budget("keep_ratio", smallest), TINY.costs)
    with pytest.raises(BudgetError):
        check_static_budget(Budget("keep_ratio", smallest - 1e-4), TINY.costs)
