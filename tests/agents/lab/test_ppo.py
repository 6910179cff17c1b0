"""PPO finds what a reward asks for: shown on tasks whose answer is known."""

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.lab.environment import SelectionEnv
from agents.lab.ppo import train_policy
from agents.policy import GraphPolicy
from spatl.channels.costs import Budget
from tests.support.problems import case_of

BUDGETS = (Budget("flops_ratio", 0.3), Budget("keep_ratio", 0.3))


def mean_reward(environment, act):
    rewards = []
    for seed in range(24):
        observation, _ = environment.reset(seed=seed)
        rewards.append(environment.step(act(observation))[1])
    return float(np.mean(rewards))


def trained(seed, steps):
    cases = [case_of("resnet8"), case_of("cnn")]
    return train_policy(
        DummyVecEnv([lambda: SelectionEnv(cases, BUDGETS)]), steps=steps, seed=seed, on_update=lambda *_: None
    )


def action_of(policy):
    def act(observation):
        tensors = [torch.from_numpy(observation[key]).unsqueeze(0) for key in ("nodes", "edges", "mask")]
        with torch.no_grad():
            return policy(*tensors)[0][0].numpy()

    return act


@pytest.mark.slow
def test_the_trained_policy_beats_random_actions_and_the_prior():
    environment = SelectionEnv([case_of("resnet8"), case_of("cnn")], BUDGETS)
    draws = np.random.default_rng(0)
    learned = mean_reward(environment, action_of(trained(1, 3072)))
    at_random = mean_reward(environment, lambda _: draws.uniform(-1, 1, 6).astype(np.float32))
    assert mean_reward(environment, action_of(GraphPolicy())) == 0
    assert learned > max(0.1, at_random + 0.1)


@pytest.mark.slow
def test_training_repeats_with_its_seed():
    first, again, other = (trained(seed, 256).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
