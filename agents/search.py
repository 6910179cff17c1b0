"""Search around the policy's action with a few evaluations: head-only PPO as in the paper, or a local search.

Both return every evaluated action's reward and leave behind a head of the client's own, so that what one round learned
is where the next one starts. The rest of the policy stays as it was shipped (paper, section 4.3.2: only the last layer
is fine-tuned on a client).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from agents.graph import Graph
from agents.policy import GraphPolicy

_SPREAD: Final = 0.4  # of a local step, in units of the action
_MOVED: Final = 0.5  # share of the groups that a local step moves
_RIDGE: Final = 1.0
_BATCH: Final = 4  # actions between two updates of the head
_EPOCHS: Final = 8
_CLIP: Final = 0.2
_LEARNING_RATE: Final = 0.01

Evaluate = Callable[[Tensor], float]


@dataclass(frozen=True, eq=False)
class Start:
    """Start of a search.

    Attributes:
        policy: The policy with the client's head; not changed.
        graph: The problem.
        action: float32 [G], the action to start from.
        reward: Its reward.
        evaluate: Measures the reward of an action.
    """

    policy: GraphPolicy
    graph: Graph
    action: Tensor
    reward: float
    evaluate: Evaluate


@dataclass(frozen=True, eq=False)
class Tuned:
    """Result of a few evaluations.

    Attributes:
        head: The client's own head, by parameter name.
        actions: [S, G], what was evaluated, in order.
        rewards: float64 [S].
    """

    head: dict[str, Tensor]
    actions: Tensor
    rewards: Tensor


def local_search(start: Start, *, samples: int, generator: torch.Generator) -> Tuned:
    """Climb from the start: move half of the groups by random amounts, and stay where it is better.

    Args:
        start: Where it begins, and how actions are measured.
        samples: How many actions may be measured.
        generator: Draws the moves.

    Returns:
        The measured actions, and the head refitted to the best of them and the start by ridge regression.
    """
    best, best_reward = start.action, start.reward
    actions, rewards = [], []
    for _ in range(samples):
        moved = torch.rand(best.shape, generator=generator) < _MOVED
        action = (best + _SPREAD * torch.randn(best.shape, generator=generator) * moved).clamp(-1, 1)
        reward = start.evaluate(action)
        actions.append(action)
        rewards.append(reward)
        if reward > best_reward:
            best, best_reward = action, reward
    found = best_reward > start.reward
    head = refitted(start.policy, start.graph, best) if found else _head(start.policy.head)
    return Tuned(head, _stacked(actions, start.action), torch.tensor(rewards, dtype=torch.float64))


def tune_head(start: Start, *, samples: int, generator: torch.Generator) -> Tuned:
    """Fine-tune the head by PPO on one-step episodes; arguments and result as of `local_search`.

    The samples are drawn around the head's own action; the start is that action, and its reward part of the baseline.
    """
    tuned = copy.deepcopy(start.policy)
    features = _features(start.policy, start.graph)
    optimizer = torch.optim.Adam(tuned.head.parameters(), lr=_LEARNING_RATE)
    std = float(tuned.log_std.detach().exp())
    actions: list[Tensor] = []
    rewards: list[float] = []
    while len(actions) < samples:
        with torch.no_grad():
            means = tuned.head(features).squeeze(-1)
        batch = [
            (means + std * torch.randn(means.shape, generator=generator)).clamp(-1, 1)
            for _ in range(min(_BATCH, samples - len(actions)))
        ]
        found = [start.evaluate(action) for action in batch]
        actions += batch
        rewards += found
        known = torch.tensor([start.reward, *rewards])
        advantages = (torch.tensor(found) - known.mean()) / known.std(correction=0).clamp(min=1e-6)
        _ascend(tuned.head, optimizer, features, means, torch.stack(batch), advantages, std)
    return Tuned(_head(tuned.head), _stacked(actions, start.action), torch.tensor(rewards, dtype=torch.float64))


def _ascend(
    head: nn.Linear,
    optimizer: torch.optim.Optimizer,
    features: Tensor,
    old_means: Tensor,
    actions: Tensor,
    advantages: Tensor,
    std: float,
) -> None:
    """Take a few steps up the clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, equation 7)."""
    old = -(((actions - old_means) / std) ** 2).sum(1) / 2
    for _ in range(_EPOCHS):
        new = -(((actions - head(features).squeeze(-1)) / std) ** 2).sum(1) / 2
        ratio = (new - old).exp()
        gain = torch.minimum(ratio * advantages, ratio.clamp(1 - _CLIP, 1 + _CLIP) * advantages).mean()
        optimizer.zero_grad()
        (-gain).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()


def refitted(policy: GraphPolicy, graph: Graph, action: Tensor) -> dict[str, Tensor]:
    """Return the head nearest to the policy's own whose actions come close to one: ridge regression around it."""
    embedded = _features(policy, graph)
    features = torch.cat([embedded, embedded.new_ones(len(action), 1)], 1)
    with torch.no_grad():
        missing = action.to(features.dtype) - policy.head(embedded).squeeze(-1)
    gram = features.T @ features + _RIDGE * torch.eye(features.shape[1], dtype=features.dtype)
    step = torch.linalg.solve(gram, features.T @ missing)
    head = _head(policy.head)
    return {"weight": head["weight"] + step[:-1].unsqueeze(0), "bias": head["bias"] + step[-1:]}


def _features(policy: GraphPolicy, graph: Graph) -> Tensor:
    """Return the inputs of the head, [G, H] in the policy's dtype."""
    with torch.no_grad():
        mask = torch.ones(1, len(graph.nodes))
        return policy.embedding(graph.nodes.unsqueeze(0), graph.edges.unsqueeze(0), mask)[0]


def _head(layer: nn.Linear) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}


def _stacked(actions: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(actions) if actions else like.new_zeros(0, len(like))
