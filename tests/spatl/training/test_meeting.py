"""Meetings: calls in threads of their own take turns in one order, wait to be trained together, and share no states."""

import random
import threading

import numpy as np
import pytest
import torch

from spatl.config.training import TrainingConfig
from spatl.data import Examples
from spatl.errors import ModelError
from spatl.models.mlp import mlp
from spatl.seeding import seeded_globals
from spatl.training.meeting import Meeting, train_here_
from spatl.training.together import Training

STRUCTURE = mlp(num_classes=3, num_features=4)


def training(structure=STRUCTURE, hooks=()) -> Training:
    examples = Examples(torch.ones(4, 4), torch.tensor([0, 1, 2, 0]))
    model = mlp(num_classes=3, num_features=4)
    return Training(
        model,
        structure,
        dict(model.named_parameters()),
        examples,
        TrainingConfig(batch_size=4),
        torch.Generator(),
        hooks,
    )


@pytest.fixture
def meeting_of_three():
    meeting = Meeting[str](3)
    yield meeting
    meeting.close()
    assert not [each for each in threading.enumerate() if each.name.startswith("client-")]


def test_calls_take_turns_and_wait_for_one_another_at_their_training(meeting_of_three):
    told = []

    def call(name: str) -> str:
        told.append(f"{name} begins")
        result = train_here_(training())
        told.append(f"{name} has done {result.num_steps} steps")
        assert result.waited >= 0
        return name.upper()

    for _ in range(2):
        told.clear()
        assert meeting_of_three.hold([lambda name=name: call(name) for name in "abc"]) == ["A", "B", "C"]
        assert told == ["a begins", "b begins", "c begins", *(f"{name} has done 2 steps" for name in "abc")]


def test_who_does_not_train_is_not_waited_for(meeting_of_three):
    def fails() -> str:
        raise KeyError("a bug")

    assert meeting_of_three.hold([lambda: "early", lambda: str(train_here_(training()).num_steps)]) == ["early", "2"]
    with pytest.raises(KeyError, match="a bug"):
        meeting_of_three.hold([lambda: "one", fails, lambda: str(train_here_(training()).num_steps)])
    assert meeting_of_three.hold([lambda: "again"]) == ["again"]


def test_a_training_that_fails_costs_the_others_nothing(meeting_of_three, caplog):
    """They are trained as they are by themselves, to the bit, from the order of examples that they would have had."""
    steps = []

    def fails_at_the_second_step(parameters: object) -> None:
        steps.append(1)
        if len(steps) % 2 == 0:
            raise ModelError("of one client")

    def fails() -> dict[str, torch.Tensor]:
        with pytest.raises(ModelError, match="of one client"):
            train_here_(training(hooks=[fails_at_the_second_step]))
        return {}

    def goes_well() -> dict[str, torch.Tensor]:
        torch.manual_seed(2)
        own = training()
        train_here_(own)
        return own.model.state_dict()

    alone = goes_well()
    found = meeting_of_three.hold([goes_well, fails, goes_well])
    assert found[1] == {}
    for each in (found[0], found[2]):
        assert all(torch.equal(each[name], alone[name]) for name in alone)
    assert "clients of a group train by themselves, for the training of one failed: of one client" in caplog.text


def test_global_random_states_are_each_calls_own(meeting_of_three):
    def call(number: int) -> str:
        with seeded_globals(number, "layers"):
            before = [float(torch.rand(())), float(np.random.rand()), random.random()]
            train_here_(training())
            return str([*before, float(torch.rand(())), float(np.random.rand()), random.random()])

    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    alone = [call(number) for number in range(3)]
    together = meeting_of_three.hold([lambda number=number: call(number) for number in range(3)])
    assert together == alone
    assert len(set(alone)) == 3
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]


def test_a_meeting_that_ends_while_somebody_waits_runs_no_further():
    reached, cleaned = [], []

    def call() -> str:
        try:
            train_here_(training())
            reached.append("after")
        finally:
            cleaned.append("up")
        return ""

    def stops(parameters: object) -> None:
        raise KeyboardInterrupt

    meeting = Meeting[str](2)
    with pytest.raises(KeyboardInterrupt):
        meeting.hold([call, lambda: str(train_here_(training(hooks=[stops])))])
    meeting.close()
    assert reached == []
    assert cleaned == ["up"]
