"""Step weights and control variates against worked numbers and numerical unrolling."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spatl.rounds.control import fading, refresh_control
from spatl.training.hooks import correction_hook, proximal_hook
from spatl.training.step_weight import StepWeight
from tests.support.layouts import interleaved_layout, make_update


@given(
    learning_rates=st.lists(st.floats(1e-3, 0.5), min_size=1, max_size=12),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    weight_decay=st.sampled_from([0.0, 1e-3, 0.1]),
    nesterov=st.booleans(),
)
def test_the_step_weight_is_the_sum_of_the_gradients_coefficients(learning_rates, momentum, weight_decay, nesterov):
    """Unrolled numerically: each step's gradient is perturbed alone, and torch's own SGD says how far the end moves."""
    nesterov = nesterov and momentum > 0
    steps = len(learning_rates)
    # One coordinate per experiment: experiment k has gradient 1 in step k and 0 in all others, starting from 0.
    weight = nn.Parameter(torch.zeros(steps, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
    tracked = StepWeight(momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
    for step, learning_rate in enumerate(learning_rates):
        weight.grad = nn.functional.one_hot(torch.tensor(step), steps).to(torch.float64)
        optimizer.param_groups[0]["lr"] = learning_rate
        optimizer.step()
        tracked.step(learning_rate)
    assert tracked.value == pytest.approx(float(-weight.detach().sum()), rel=1e-9)


def test_plain_sgd_has_the_step_weight_k_times_the_learning_rate():
    tracked = StepWeight()
    for _ in range(7):
        tracked.step(0.05)
    assert tracked.value == pytest.approx(7 * 0.05)


def test_momentum_adds_up_to_more_than_k_times_the_learning_rate():
    """Two steps at 0.1 with momentum 0.9: velocities 1 and 1.9, so 0.1 * 2.9; K * lr would say 0.2."""
    tracked = StepWeight(momentum=0.9)
    tracked.step(0.1)
    tracked.step(0.1)
    assert tracked.value == pytest.approx(0.29)


def test_a_constant_gradient_is_recovered_by_option_two_under_momentum():
    """If every local gradient is g, the estimate -D / a must be g: here with momentum 0.9 over five steps."""
    gradient = torch.tensor([0.3, -2.0])
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    tracked = StepWeight(momentum=0.9)
    for _ in range(5):
        weight.grad = gradient.clone()
        optimizer.step()
        tracked.step(0.1)
    layout = interleaved_layout([(2, 1)])
    update = make_update(layout, [True, True], weight.detach(), step_weight=tracked.value)
    estimate = refresh_control(torch.zeros(2), torch.zeros(2), update, layout, damping=1.0)
    torch.testing.assert_close(estimate, gradient)


@given(seed=st.integers(0, 2**32), damping=st.sampled_from([0.1, 0.5, 1.0]))
def test_entries_that_were_not_sent_keep_their_c_i(seed, damping):
    layout = interleaved_layout([(1, 2), (6, 3)], statistics=2)
    draw = torch.Generator().manual_seed(seed)
    mask = (torch.rand(layout.num_channels, generator=draw) < 0.5).tolist()
    update = make_update(layout, mask, torch.randn(layout.num_entries, generator=draw), step_weight=0.3)
    before = torch.randn(layout.num_parameter_entries, generator=draw)
    control = torch.randn(layout.num_parameter_entries, generator=draw)
    after = refresh_control(before, control, update, layout, damping=damping)
    sent = torch.tensor(mask)[layout.owner[: layout.num_parameter_entries]]
    assert torch.equal(after[~sent], before[~sent])
    dense = torch.zeros(layout.num_entries)
    dense[update.selection.entries(layout)] = update.values
    expected = before + damping * (-dense[: layout.num_parameter_entries] / 0.3 - control)
    torch.testing.assert_close(after[sent], expected[sent])


def test_control_variates_fade_by_half_in_a_half_life_and_in_steps_as_at_once():
    assert fading(None, 1000) == 1.0
    assert fading(2.0, 0) == 1.0
    assert fading(2.0, 2) == 0.5
    assert fading(3.0, 5) == pytest.approx(fading(3.0, 1) ** 5)


def test_the_correction_is_added_to_the_named_gradients_only():
    """No hidden factor: g + (c - c_i), to the bit, on what is named."""
    model = nn.Linear(2, 1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    correction_hook({"weight": torch.tensor([[0.5, -1.0]])}, {"weight": torch.tensor([[0.25, 2.0]])})(
        dict(model.named_parameters())
    )
    assert model.weight.grad.tolist() == [[1.25, -2.0]]
    assert model.bias.grad.tolist() == [1.0]


def test_the_proximal_pull_is_the_gradient_of_its_penalty():
    model = nn.Linear(3, 2)
    reference = {name: p.detach() + torch.randn_like(p) for name, p in model.named_parameters()}
    penalty = sum(0.5 * 0.7 * (p - reference[name]).square().sum() for name, p in model.named_parameters())
    expected = torch.autograd.grad(penalty, list(model.parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    proximal_hook(reference, 0.7)(dict(model.named_parameters()))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
