"""Proximal policy optimisation of the graph policy by stable-baselines3, which sees it as any actor-critic policy.

The policy's own network takes the place of the library's feature extractor and multi-layer perceptrons: one head acts
for all nodes, and padded nodes count neither in the probability of an action nor in the entropy.
"""

from collections.abc import Callable
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.distributions import Normal

from agents.policy import GraphPolicy

OnUpdate = Callable[[int, float], None]


class GraphActorCritic(ActorCriticPolicy):
    """`GraphPolicy` behind stable-baselines3's interface; observations are those of `SelectionEnv`."""

    def _build(self, lr_schedule: Schedule) -> None:
        self.graph_policy = GraphPolicy()
        self.optimizer = torch.optim.Adam(self.graph_policy.parameters(), lr=lr_schedule(1), eps=1e-5)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return actions [B, G], values [B, 1] and log-probabilities [B]."""
        means, values, mask = self._outputs(obs)
        distribution = self._distribution(means)
        actions = means if deterministic else distribution.sample()  # type: ignore[no-untyped-call]
        return actions, values.unsqueeze(1), self._log_prob(distribution, actions, mask)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return values [B, 1], log-probabilities [B] and entropies [B] of given actions."""
        means, values, mask = self._outputs(obs)
        distribution = self._distribution(means)
        entropy = (distribution.entropy() * mask).sum(1)  # type: ignore[no-untyped-call]
        return values.unsqueeze(1), self._log_prob(distribution, actions, mask), entropy

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Return the values [B, 1]."""
        return self._outputs(obs)[1].unsqueeze(1)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        return self.forward(observation, deterministic)[0]

    def _outputs(self, obs: PyTorchObs) -> tuple[Tensor, Tensor, Tensor]:
        assert isinstance(obs, dict)
        means, values = self.graph_policy(obs["nodes"], obs["edges"], obs["mask"])
        return means, values, obs["mask"]

    def _distribution(self, means: Tensor) -> Normal:
        return Normal(means, self.graph_policy.log_std.exp().expand_as(means))

    @staticmethod
    def _log_prob(distribution: Normal, actions: Tensor, mask: Tensor) -> Tensor:
        per_node: Tensor = distribution.log_prob(actions)  # type: ignore[no-untyped-call]
        return (per_node * mask).sum(1)


def train_policy(environment: VecEnv, *, steps: int, seed: int, on_update: OnUpdate) -> GraphPolicy:
    """Train a policy from scratch.

    Args:
        environment: Copies of `SelectionEnv`.
        steps: How many selections to measure, over all copies.
        seed: Of the initial weights, the actions and the environments.
        on_update: Called after each batch of episodes with the steps so far and their mean reward.

    Returns:
        The policy, in eval mode on the CPU.
    """
    model = PPO(
        GraphActorCritic,
        environment,
        learning_rate=lambda remaining: 1e-3 * remaining,
        n_steps=max(8, 256 // environment.num_envs),
        batch_size=64,
        n_epochs=8,
        gamma=1.0,
        gae_lambda=1.0,
        clip_range=0.2,
        ent_coef=0.0,
        vf_coef=0.5,
        max_grad_norm=0.5,
        target_kl=0.04,
        seed=seed,
        device="cpu",
    )
    model.learn(steps, callback=_Progress(on_update))
    assert isinstance(model.policy, GraphActorCritic)
    return model.policy.graph_policy.eval()


class _Progress(BaseCallback):
    """Reports the mean reward of each batch of episodes."""

    def __init__(self, on_update: OnUpdate) -> None:
        super().__init__()
        self._on_update = on_update
        self._rewards: list[float] = []

    def _on_step(self) -> bool:
        rewards: Any = self.locals["rewards"]
        self._rewards += [float(value) for value in rewards]
        return True

    def _on_rollout_end(self) -> None:
        self._on_update(self.num_timesteps, sum(self._rewards) / max(1, len(self._rewards)))
        self._rewards = []
