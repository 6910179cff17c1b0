"""The environment keeps gymnasium's contract, and its reward is what the selection is worth beyond the prior."""

import gymnasium.utils.env_checker
import numpy as np
import pytest
import torch

from agents.lab.environment import SelectionEnv
from agents.measurement import reward
from spatl.channels.costs import Budget
from spatl.training.evaluate import Evaluation
from tests.support.problems import case_of

BUDGETS = (Budget("flops_ratio", 0.3), Budget("keep_ratio", 0.5))


def test_gymnasiums_own_checker_is_content():
    environment = SelectionEnv([case_of("resnet8"), case_of("cnn")], BUDGETS, max_groups=9)
    gymnasium.utils.env_checker.check_env(environment, skip_render_check=True)


def test_an_episode_is_one_step_and_its_reward_counts_from_the_prior():
    environment = SelectionEnv([case_of("resnet8")], BUDGETS[:1])
    environment.reset(seed=1)
    nothing = np.zeros(environment.action_space.shape, np.float32)
    observation, value, terminated, truncated, info = environment.step(nothing)
    assert (value, terminated, truncated) == (0.0, True, False)
    assert info["accuracy"] == info["prior_accuracy"]
    assert environment.observation_space.contains(observation)
    more = nothing.copy()
    more[-1] = 1
    assert environment.step(more)[1] > 0


def test_networks_and_budgets_are_drawn_and_padding_is_ignored():
    environment = SelectionEnv([case_of("resnet8"), case_of("cnn")], BUDGETS, max_groups=12)
    sizes = {int(environment.reset(seed=seed)[0]["mask"].sum()) for seed in range(20)}
    assert sizes == {3, 6}
    action = np.linspace(-0.5, 0.5, 12).astype(np.float32)
    other = action.copy()
    other[6:] = -1
    environment.reset(seed=4)
    first = environment.step(action)[1]
    environment.reset(seed=4)
    assert environment.step(other)[1] == first


def test_the_prior_is_measured_once_per_network_and_budget():
    calls = []
    environment = SelectionEnv([case_of("cnn", calls)], BUDGETS[:1])
    for _ in range(5):
        environment.reset(seed=0)
        environment.step(np.zeros(3, np.float32))
    assert len(calls) == 1 + 5


def test_too_little_room_for_a_network_is_an_error():
    with pytest.raises(ValueError, match="max_groups is 2, the largest network has 6 groups"):
        SelectionEnv([case_of("resnet8")], BUDGETS, max_groups=2)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_punished_not_spread(loss):
    value = reward(Evaluation(0.1, loss), Evaluation(0.5, 1.0))
    assert value == pytest.approx(-0.4 - 0.4)
    assert torch.isfinite(torch.tensor(value))
