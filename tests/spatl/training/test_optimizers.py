"""Optimizers of local training are PyTorch's own, and their step weights are what unrolled steps add up to."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spatl.config.loading import parse_config
from spatl.config.training import TrainingConfig
from spatl.data import Examples, batches
from spatl.rounds.federation import Federation
from spatl.training.local import train_
from spatl.training.step_weight import StepWeight, accumulated_step_weight
from tests.support.training import examples, network


def train(model, settings, hooks=()):
    draw = torch.Generator().manual_seed(5)
    return train_(model, dict(model.named_parameters()), examples(), settings, generator=draw, hooks=hooks)


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize(
    ("optimizer", "more"),
    [
        (torch.optim.Adam, {}),
        (torch.optim.Adam, {"weight_decay": 0.1, "betas": (0.7, 0.9), "eps": 1e-3}),
        (torch.optim.AdamW, {}),
        (torch.optim.AdamW, {"weight_decay": 0.3, "betas": (0.0, 0.5)}),
        (torch.optim.SGD, {"momentum": 0.9}),
    ],
)
def test_training_is_torchs_own_optimizer_over_the_batches(optimizer, more, clip):
    """Also with its defaults, where a config names nothing but the optimizer."""
    named = {"optimizer": optimizer.__name__.lower(), "learning_rate": 0.01, "clip_gradients": clip}
    ours = {key: value for key, value in more.items() if key not in ("betas", "eps")}
    if "betas" in more:
        ours |= {"beta_1": more["betas"][0], "beta_2": more["betas"][1], "epsilon": more.get("eps", 1e-8)}
    model, reference = network(), network()
    torch.manual_seed(1)
    result = train(model, TrainingConfig(local_epochs=2, batch_size=16, **named, **ours))

    torch.manual_seed(1)
    steps = optimizer(reference.parameters(), lr=0.01, **more)
    draw = torch.Generator().manual_seed(5)
    for _ in range(2):
        for inputs, targets in batches(examples(), batch_size=16, generator=draw):
            steps.zero_grad()
            F.cross_entropy(reference(inputs), targets).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(reference.parameters(), clip)
            steps.step()
    for mine, theirs in zip(model.state_dict().values(), reference.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert result.num_steps == 8


def test_a_gradient_is_clipped_before_a_method_changes_it():
    """What the hooks are given is no longer than the bound; what they add is not clipped."""
    seen, before = [], network()

    def note(parameters):
        seen.append(float(torch.cat([p.grad.flatten() for p in parameters.values()]).norm()))
        for parameter in parameters.values():
            parameter.grad.fill_(1.0)

    model = network()
    train(model, TrainingConfig(local_steps=1, batch_size=16, learning_rate=0.5, clip_gradients=0.01), [note])
    assert seen == [pytest.approx(0.01, rel=1e-4)]
    for now, was in zip(model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(was - now, torch.full_like(now, 0.5))


def test_a_parameter_without_a_gradient_stays_and_starts_when_it_has_one():
    """Adam's first step is the whole rate, whenever it is taken."""
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    class Net(nn.Module):
        calls = 0

        def forward(self, inputs):
            self.calls += 1
            value = first if self.calls == 1 else first + second
            return torch.cat([value, -value]).expand(len(inputs), 2)

    settings = TrainingConfig(local_steps=2, batch_size=50, optimizer="adam", learning_rate=0.01)
    data = Examples(torch.zeros(50, 1), torch.zeros(50, dtype=torch.int64))
    train_(Net(), {"first": first, "second": second}, data, settings, generator=torch.Generator())
    assert abs(first.item()) > 0.015
    assert abs(second.item()) == pytest.approx(0.01, rel=1e-3)


@given(
    learning_rates=st.lists(st.floats(1e-3, 0.5), min_size=1, max_size=10),
    beta_1=st.sampled_from([0.0, 0.9]),
    beta_2=st.sampled_from([0.5, 0.999]),
    weight_decay=st.sampled_from([0.0, 0.01, 0.5]),
    name=st.sampled_from(["adam", "adamw"]),
    seed=st.integers(0, 1000),
)
def test_adams_step_weight_is_the_sum_of_its_directions_coefficients(
    learning_rates, beta_1, beta_2, weight_decay, name, seed
):
    """Unrolled: the directions of PyTorch's own steps are read off, and one of them is one more in each copy.

    How far that moves the end is its coefficient; a is what the coefficients add up to.
    """
    make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = make([weight], lr=1.0, betas=(beta_1, beta_2), weight_decay=weight_decay)
    decay = weight_decay if name == "adamw" else 0.0
    directions, draw = [], torch.Generator().manual_seed(seed)
    for learning_rate in learning_rates:
        before = weight.item()
        weight.grad = torch.randn(1, generator=draw, dtype=torch.float64) + 0.1
        optimizer.param_groups[0]["lr"] = learning_rate
        optimizer.step()
        directions.append((before * (1 - learning_rate * decay) - weight.item()) / learning_rate)
    coefficients = []
    for changed in range(len(directions)):
        value = 1.0
        for step, (learning_rate, direction) in enumerate(zip(learning_rates, directions, strict=True)):
            value = value * (1 - learning_rate * decay) - learning_rate * (direction + (step == changed))
        coefficients.append(weight.item() - value)
    tracked = StepWeight.of(TrainingConfig(optimizer=name, weight_decay=weight_decay))
    for learning_rate in learning_rates:
        tracked.step(learning_rate)
    assert tracked.value == pytest.approx(sum(coefficients), rel=1e-6)


@pytest.mark.slow
@given(
    optimizer=st.sampled_from(["sgd", "adam", "adamw"]),
    momentum=st.sampled_from([0.0, 0.9]),
    weight_decay=st.sampled_from([0.0, 0.01]),
    nesterov=st.booleans(),
    schedule=st.sampled_from(["constant", "step", "cosine"]),
    warmup=st.integers(0, 3),
    server_round=st.integers(1, 8),
    own=st.sampled_from([{}, {"learning_rate": 0.02}, {"local_steps": 4}, {"local_epochs": 1, "batch_size": 3}]),
)
def test_the_server_knows_the_step_weight_of_each_client_in_each_round(
    optimizer, momentum, weight_decay, nesterov, schedule, warmup, server_round, own
):
    """To the last bit what the client's training adds up to; for SGD, what unrolled steps of PyTorch do."""
    nesterov = nesterov and momentum > 0
    config = parse_config({
        "method": "fedavg", "rounds": 8, "partition": {"num_clients": 2},
        "training": {
            "optimizer": optimizer, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov,
            "schedule": schedule, "warmup_rounds": warmup, "step_rounds": 2, "step_factor": 0.5, "learning_rate": 0.1,
            "local_epochs": 2, "batch_size": 8, "clients": {1: own} if own else {},
        },
    })  # fmt: skip
    federation = Federation(SimpleNamespace(config=config), frozenset({0, 1}))
    for client in (0, 1):
        settings = config.training_of(client, server_round)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
        result = train_(model, dict(model.named_parameters()), examples(20), settings, generator=torch.Generator())
        assert result.step_weight == federation.step_weight(client, 20, server_round)
        assert result.step_weight == accumulated_step_weight(settings, 20)
        if optimizer == "sgd":
            weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
            steps = torch.optim.SGD(
                [weight], lr=settings.learning_rate, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov
            )
            for _ in range(result.num_steps):
                weight.grad = -torch.ones(1, dtype=torch.float64)
                steps.step()
            assert result.step_weight == pytest.approx(weight.item(), rel=1e-9)
