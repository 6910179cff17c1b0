"""Repair of chosen filters by one example."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spatl.saliency.filters import filters_of
from spatl.saliency.repair import example_gradients, filter_weights, logits_with, repaired, repaired_by
from spatl.seeding import seeded_globals


def network() -> nn.Sequential:
    with seeded_globals(1, "weights"):
        return nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5)
        )


MODEL = network()
FILTERS = filters_of(MODEL)
IMAGE = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(2))
LABEL = torch.tensor(3)


def gradients_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return example_gradients(model, IMAGE, LABEL, filter_weights(model, FILTERS))


def test_a_step_by_all_filters_is_plain_gradient_descent_on_their_weights():
    model, rate = network(), 0.1
    own = dict(model.eval().named_parameters())
    loss = nn.functional.cross_entropy(model(IMAGE[None]), LABEL[None])
    found = torch.autograd.grad(loss, [own["0.weight"], own["3.weight"]])
    everything = torch.ones(FILTERS.num_filters, dtype=torch.bool)
    weights = repaired(MODEL, IMAGE, LABEL, FILTERS, everything, learning_rate=rate)
    for name, gradient in zip(("0.weight", "3.weight"), found, strict=True):
        torch.testing.assert_close(weights[name], own[name].detach() - rate * gradient)


@given(st.integers(0, 6), st.floats(0.01, 2.0))
def test_a_step_has_the_length_it_is_to_have_and_changes_the_chosen_filters_alone(place, length):
    chosen = torch.zeros(FILTERS.num_filters, dtype=torch.bool)
    chosen[place] = True
    before = filter_weights(MODEL, FILTERS)
    after = repaired_by(before, gradients_of(MODEL), FILTERS, chosen, length=length)
    change = torch.cat([layer.rows(after[layer.weight] - before[layer.weight]).norm(dim=1) for layer in FILTERS.layers])
    assert float(change.norm()) == pytest.approx(length, rel=1e-3)
    assert not change[~chosen].any()


def test_a_step_without_a_gradient_changes_nothing():
    before = filter_weights(MODEL, FILTERS)
    gradients = {name: torch.zeros_like(each) for name, each in before.items()}
    after = repaired_by(before, gradients, FILTERS, torch.ones(7, dtype=torch.bool), length=1.0)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_network_stays_as_it_is_and_a_small_step_lowers_the_loss_of_the_example():
    state = {name: each.clone() for name, each in MODEL.state_dict().items()}
    before = filter_weights(MODEL, FILTERS)
    after = repaired_by(before, gradients_of(MODEL), FILTERS, torch.ones(7, dtype=torch.bool), length=0.05)
    losses = [
        nn.functional.cross_entropy(logits_with(MODEL, IMAGE[None], each), LABEL[None]) for each in (before, after)
    ]
    assert losses[1] < losses[0]
    assert MODEL.training
    assert all(torch.equal(state[name], each) for name, each in MODEL.state_dict().items())
