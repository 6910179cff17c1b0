"""Clients that train as one program: the same as each of them alone, in float64, whatever each one has."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spatl.config.training import TrainingConfig
from spatl.data import Examples
from spatl.models.table import MODELS
from spatl.tasks.task import CLASSIFICATION
from spatl.training.calibration import calibrated
from spatl.training.hooks import correction_hook, proximal_hook
from spatl.training.together import Networks, Training, train_together_

NUM_CLASSES = 3


@dataclass(frozen=True)
class Client:
    """What a client brings: how many examples, and whether its gradients are corrected and pulled."""

    num_examples: int
    corrects: bool


def network(name: str) -> nn.Module:
    torch.manual_seed(3)
    options = {"width": 0.25} if name == "resnet8" else {"channels": [4, 4], "hidden": 8}
    factory = MODELS[name].factory
    return factory(num_classes=NUM_CLASSES, in_channels=1, image_size=8, **options).double()


def trainings(structure: nn.Module, clients: list[Client], config: TrainingConfig, offsets: bool) -> list[Training]:
    """Each client's training, of a model of its own."""
    found = []
    for number, client in enumerate(clients):
        torch.manual_seed(number)
        model = copy.deepcopy(structure)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        images = torch.randn(client.num_examples, 1, 8, 8, dtype=torch.float64)
        targets = torch.randint(NUM_CLASSES, (client.num_examples,))
        start = {name: each.detach().clone() for name, each in model.named_parameters()}
        other = {name: 0.1 * torch.randn_like(each) for name, each in start.items()}
        hooks = [correction_hook(other, start), proximal_hook(start, 0.1)] if client.corrects else []
        found.append(
            Training(
                model, structure, dict(model.named_parameters()), Examples(images, targets), config,
                torch.Generator().manual_seed(number), hooks, None, CLASSIFICATION,
                torch.randn(NUM_CLASSES, dtype=torch.float64) if offsets else None,
            )
        )  # fmt: skip
    return found


CONFIGS = st.sampled_from([
    {"momentum": 0.9}, {"momentum": 0.5, "nesterov": True, "weight_decay": 0.01}, {}, {"clip_gradients": 0.5},
    {"optimizer": "adam", "learning_rate": 0.01}, {"optimizer": "adamw", "learning_rate": 0.01},
    {"local_steps": 5, "momentum": 0.9}, {"augmentation": "flip"},
])  # fmt: skip


@settings(max_examples=25)
@given(
    st.lists(st.builds(Client, st.integers(1, 21), st.booleans()), min_size=1, max_size=4),
    CONFIGS, st.sampled_from([4, 7]), st.booleans(), st.sampled_from(["cnn", "resnet8"]),
)  # fmt: skip
def test_each_is_trained_as_it_is_alone(clients, own, batch_size, offsets, name):
    config = TrainingConfig.model_validate({"learning_rate": 0.05, "local_epochs": 2, "batch_size": batch_size, **own})
    structure = network(name)
    alone, together = (trainings(structure, clients, config, offsets) for _ in range(2))
    wanted = []
    for each in alone:
        with calibrated(each.model, each.offset):
            wanted.append(each.alone())
    found = train_together_(together, Networks())
    for (result, _), expected in zip(found, wanted, strict=True):
        assert (result.num_steps, result.step_weight, result.finite_steps) == (
            expected.num_steps, expected.step_weight, expected.finite_steps,
        )  # fmt: skip
        assert result.loss == pytest.approx(expected.loss, rel=1e-5)
    for each, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(each.model.state_dict(), expected.model.state_dict(), rtol=1e-7, atol=1e-9)


def test_clients_may_have_settings_of_their_own():
    structure = network("resnet8")
    both = [trainings(structure, [Client(9, False)] * 3, TrainingConfig(), False) for _ in range(2)]
    for group in both:
        for number, training in enumerate(group):
            own = TrainingConfig(learning_rate=0.02 * (1 + number), local_epochs=1 + number, batch_size=3 + number // 2)
            group[number] = Training(
                training.model, structure, training.parameters, training.examples, own, training.generator
            )
    steps = [training.alone().num_steps for training in both[0]]
    found = train_together_(both[1], Networks())
    assert [result.num_steps for result, _ in found] == steps == [3, 6, 6]
    for alone, together in zip(*both, strict=True):
        torch.testing.assert_close(together.model.state_dict(), alone.model.state_dict(), rtol=1e-7, atol=1e-9)


def test_what_is_not_trained_stays_to_the_bit():
    structure = network("cnn")
    group = trainings(structure, [Client(8, False)] * 2, TrainingConfig(batch_size=4), False)
    last = list(group[0].parameters)[-1]
    before = [training.model.state_dict()[last].clone() for training in group]
    for number, training in enumerate(group):
        rest = {name: each for name, each in training.parameters.items() if name != last}
        group[number] = Training(
            training.model, structure, rest, training.examples, training.settings, training.generator
        )
    train_together_(group, Networks())
    for training, value in zip(group, before, strict=True):
        assert torch.equal(training.model.state_dict()[last], value)
        assert all(parameter.grad is None for parameter in training.model.parameters())


def test_a_client_that_diverges_leaves_the_others_as_they_are():
    structure = network("resnet8")
    config = TrainingConfig(batch_size=4)
    alone, together = (trainings(structure, [Client(8, False)] * 3, config, False) for _ in range(2))
    together[1].examples.inputs.fill_(torch.nan)
    results = train_together_(together, Networks())
    assert results[1][0].finite_steps == 0
    for member in (0, 2):
        alone[member].alone()
        torch.testing.assert_close(together[member].model.state_dict(), alone[member].model.state_dict())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_on_a_gpu_too():
    structure = network("resnet8")
    config = TrainingConfig(batch_size=4)
    alone, together = (
        [
            replace(each, model=each.model.cuda(), parameters=dict(each.model.named_parameters()),
                    examples=each.examples.to(torch.device("cuda")))
            for each in trainings(structure, [Client(9, False), Client(14, False)], config, False)
        ] for _ in range(2)
    )  # fmt: skip
    for each in alone:
        each.alone()
    train_together_(together, Networks())
    for each, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(each.model.state_dict(), expected.model.state_dict(), rtol=1e-7, atol=1e-9)


def test_shares_of_the_time_are_by_examples_and_all_of_it():
    group = trainings(network("cnn"), [Client(4, False), Client(12, False)], TrainingConfig(batch_size=4), False)
    (_, first), (_, second) = train_together_(group, Networks())
    assert second == pytest.approx(3 * first)
