"""Environment (gymnasium) that the policy is trained in: one selection per episode."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.graph import NUM_FEATURES, Graph, make_graph
from agents.measurement import Trial, reward
from agents.selection_problem import Objective, Problem
from spatl.channels.costs import Budget, Costs
from spatl.training.evaluate import Evaluation

Observation = dict[str, NDArray[np.float32]]


@dataclass(eq=False)
class Case:
    """Trained network, from which a budget makes a problem.

    Attributes:
        costs: What its channels cost.
        worth: float64 [C], what they are worth.
        trial: Measures a selection.
        objective: What selections of it are for.
        scale: What rewards are multiplied by.
    """

    costs: Costs
    worth: Tensor
    trial: Trial
    objective: Objective
    scale: float = 1.0
    _known: dict[Budget, tuple[Problem, Graph, Evaluation]] = field(default_factory=dict, repr=False)

    def under(self, budget: Budget) -> tuple[Problem, Graph, Evaluation]:
        """Return the problem under a budget, its graph, and the outcome of the prior; made once."""
        if budget not in self._known:
            problem = Problem(self.costs, budget, self.worth, self.objective)
            self._known[budget] = problem, make_graph(problem), self.trial(problem.prior())
        return self._known[budget]


class SelectionEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """Choose the keep ratios of all channel groups of a network at once.

    ## Description
    A trained network and a budget are drawn; the agent moves each group's keep ratio away from the prior's; the
    budget is met by projection; the selection is measured.

    ## Action space
    `Box(-1, 1, (max_groups,))`: one number per group, 3 logits per unit; the entries beyond the network's groups are
    ignored. The zero action is the prior.

    ## Observation space
    `Dict`, padded with zeros to `max_groups` nodes:

    | key | shape | what it holds |
    |---|---|---|
    | nodes | (max_groups, 21) | features of the channel groups (`agents.graph`) |
    | edges | (max_groups, max_groups) | row j: the shares of the groups that group j is computed from |
    | mask | (max_groups,) | 1 for a group, 0 for padding |

    ## Rewards
    `agents.measurement.reward`: accuracy and cross-entropy compared with the prior under the same budget, times the
    case's `scale`.

    ## Starting state
    A case and a budget, each drawn uniformly.

    ## Episode end
    Terminates after one step; it is never truncated.

    ## Arguments
    `cases`: the networks; `budgets`: what may be drawn; `max_groups`: the padded size, at least the largest network's.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  # gymnasium's own declaration

    def __init__(self, cases: Sequence[Case], budgets: Sequence[Budget], *, max_groups: int | None = None) -> None:
        super().__init__()
        largest = max(len(case.costs.layout.groups) for case in cases)
        self._max_groups = largest if max_groups is None else max_groups
        if self._max_groups < largest:
            raise ValueError(f"max_groups is {max_groups}, the largest network has {largest} groups")
        self._cases, self._budgets = tuple(cases), tuple(budgets)
        self._case, self._budget = self._cases[0], self._budgets[0]
        size = self._max_groups
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (size,), np.float32)
        self.observation_space: Any = gymnasium.spaces.Dict(
            {
                "nodes": gymnasium.spaces.Box(-5.0, 5.0, (size, NUM_FEATURES), np.float32),
                "edges": gymnasium.spaces.Box(0.0, 1.0, (size, size), np.float32),
                "mask": gymnasium.spaces.Box(0.0, 1.0, (size,), np.float32),
            }
        )

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Draw a case and a budget."""
        super().reset(seed=seed, options=dict(options or {}))
        self._case = self._cases[int(self.np_random.integers(len(self._cases)))]
        self._budget = self._budgets[int(self.np_random.integers(len(self._budgets)))]
        return self._observation(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Measure the selection and end the episode."""
        problem, graph, prior = self._case.under(self._budget)
        chosen = torch.as_tensor(action, dtype=torch.float32)[: len(graph.nodes)]
        found = self._case.trial(problem.selection(chosen))
        info = {"accuracy": found.accuracy, "prior_accuracy": prior.accuracy}
        return self._observation(), self._case.scale * reward(found, prior), True, False, info

    def _observation(self) -> Observation:
        _, graph, _ = self._case.under(self._budget)
        return padded(graph, self._max_groups)


def padded(graph: Graph, max_groups: int) -> Observation:
    """Lay a graph out as an observation for `max_groups` nodes."""
    size = len(graph.nodes)
    nodes = np.zeros((max_groups, NUM_FEATURES), np.float32)
    edges = np.zeros((max_groups, max_groups), np.float32)
    mask = np.zeros(max_groups, np.float32)
    nodes[:size], edges[:size, :size], mask[:size] = graph.nodes.numpy(), graph.edges.numpy(), 1
    return {"nodes": nodes, "edges": edges, "mask": mask}
