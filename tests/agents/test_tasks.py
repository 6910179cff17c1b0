"""Trials of other tasks are judged by the task's own score, more being better."""

import math

import pytest
import torch

from agents.measurement import reward, sent_trial
from spatl.channels.selection import select_all
from spatl.rounds.blueprint import cached_blueprint
from tests.support.tasks import task_config


@pytest.mark.parametrize("task", ["regression", "multi-label"])
def test_a_trial_is_judged_by_the_score_of_its_task(task):
    """Of errors by less them, in units of the targets' deviation; with the loss, and a part of both by example."""
    blueprint = cached_blueprint(task_config(task).to_json())
    examples, encoder = blueprint.client_data(0).validation, blueprint.initial_encoder()
    trial = sent_trial(
        blueprint.model, blueprint.layout, trained=encoder, update=torch.zeros_like(encoder), examples=examples,
        task=blueprint.task,
    )  # fmt: skip
    found = trial(select_all(blueprint.layout))
    with torch.no_grad():
        outputs = blueprint.model.eval()(examples.inputs)
    measured = blueprint.task.measures([(outputs, examples.targets)])[0].value
    if task == "regression":
        assert found.accuracy == pytest.approx(-float((outputs - examples.targets).abs().mean()), rel=1e-5)
        assert measured == pytest.approx(
            float(((outputs - examples.targets).abs().mean(0) * blueprint.task.deviations).mean()), rel=1e-5
        )
    else:
        assert found.accuracy == pytest.approx(measured)
    assert found.loss == pytest.approx(float(blueprint.task.loss.mean(outputs, examples.targets)), rel=1e-5)
    assert found.scores.shape == (len(examples),)
    assert found.advantage(found) == 0
    assert reward(found, found) == 0
    assert math.isfinite(float(found.scores.std()))
