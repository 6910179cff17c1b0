"""Local training is plain SGD."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spatl.config.training import TrainingConfig
from spatl.data import batches
from spatl.training.local import train_
from spatl.training.step_weight import accumulated_step_weight, num_steps
from tests.support.training import examples, network


def train(model, settings, data=None, hooks=(), seed=5):
    parameters = dict(model.named_parameters())
    return train_(
        model, parameters, data or examples(), settings, generator=torch.Generator().manual_seed(seed), hooks=hooks
    )


@pytest.mark.parametrize(
    "more",
    [{}, {"momentum": 0.9, "weight_decay": 0.01}, {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}],
)
def test_training_is_torchs_own_sgd_over_the_batches(more):
    settings = TrainingConfig(local_epochs=2, batch_size=16, learning_rate=0.1, **more)
    model, reference = network(), network()
    torch.manual_seed(1)
    result = train(model, settings)

    torch.manual_seed(1)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, **more)
    generator = torch.Generator().manual_seed(5)
    losses = []
    for _ in range(2):
        for images, labels in batches(examples(), batch_size=16, generator=generator):
            optimizer.zero_grad()
            loss = F.cross_entropy(reference(images), labels)
            loss.backward()
            optimizer.step()
            losses += [loss.item()] * len(labels)
    for mine, theirs in zip(model.state_dict().values(), reference.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert result.loss == pytest.approx(sum(losses) / len(losses))
    assert result.num_steps == 8


PROGRAM = """
import sys, tempfile
from pathlib import Path
from spatl.rounds.client_data import load_clients
from spatl.rounds.memory import check_memory
from tests.support.federations import run_tiny, tiny_config
check_memory(tiny_config(), load_clients(tiny_config())[0], 10**9)  # as a device does first
run_tiny(tiny_config(rounds=1), Path(tempfile.mkdtemp()) / "run")
heavy = {"torch._dynamo", "sympy", "stable_baselines3", "gymnasium", "sqlalchemy"}
print(sorted(heavy & sys.modules.keys()))
"""


@pytest.mark.slow
def test_a_round_imports_neither_a_compiler_nor_what_trains_agents_nor_a_data_base():
    """Every message of a deployment starts a process, which pays for what it imports."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("steps", [1, 3, 4, 11])
def test_steps_are_counted_across_epochs(steps):
    settings = TrainingConfig(local_epochs=99, local_steps=steps, batch_size=16, learning_rate=0.1)
    assert train(network(), settings).num_steps == steps


@pytest.mark.parametrize("training", [True, False])
def test_training_restores_the_mode_and_trains_in_training_mode(training):
    model = network().train(training)
    before = model[1].running_mean.clone()
    train(model, TrainingConfig(local_epochs=1, batch_size=16, learning_rate=0.1))
    assert model.training is training
    assert not torch.equal(model[1].running_mean, before)


def test_only_the_named_parameters_move():
    model = network()
    before = copy.deepcopy(model)
    head = {name: p for name, p in model.named_parameters() if name.startswith("5.")}
    settings = TrainingConfig(local_epochs=1, batch_size=16, learning_rate=0.1, weight_decay=0.1)
    train_(model, head, examples(), settings, generator=torch.Generator())
    for (name, now), was in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(now, was) != name.startswith("5.")


@pytest.mark.slow
@given(
    number=st.integers(2, 60),
    batch_size=st.integers(1, 20),
    epochs=st.integers(1, 3),
    steps=st.one_of(st.none(), st.integers(1, 12)),
    momentum=st.sampled_from([0.0, 0.9]),
)
def test_the_step_weight_is_common_knowledge(number, batch_size, epochs, steps, momentum):
    """What a client reports is what a server computes from the number of examples alone, to the last bit."""
    settings = TrainingConfig(
        local_epochs=epochs, local_steps=steps, batch_size=batch_size, learning_rate=0.01, momentum=momentum
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    result = train(model, settings, examples(number))
    assert result.num_steps == num_steps(settings, number)
    assert result.step_weight == accumulated_step_weight(settings, number)
