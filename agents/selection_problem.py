"""Problem of a selection: an encoder, a budget, the worth of each channel, and the prior the agent starts from.

The prior ranks all channels by worth per cost, as one would fill a knapsack, and keeps as many as the budget pays for.
The agent moves the keep ratio of each group away from the prior's, in logits; a common shift of all logits then meets
the budget exactly. So every action is feasible, and the action 0 is the prior.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from spatl.channels.costs import Budget, Costs
from spatl.channels.selection import Selection
from spatl.selection.projection import keep_top, project_ranking, project_ratios, rank_by_worth

Objective = Literal["sent", "pruned"]

ACTION_SCALE = 3.0
"""Logits by which an action of 1 moves a keep ratio."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Selection that is to be made.

    Attributes:
        costs: The encoder and what its channels cost.
        budget: What may be spent.
        worth: float64 [C], at least 0: what each channel is worth; ranks channels inside a group.
        objective: What the selection is for (`agents.measurement`).
    """

    costs: Costs
    budget: Budget
    worth: Tensor
    objective: Objective

    @cached_property
    def prior_ratios(self) -> Tensor:
        """Share of each group, float64 [G] in (0, 1), that the ranking by worth per cost keeps.

        A group kept whole stands a quarter of a channel below 1, so that its logit is finite and the agent can
        reach it.
        """
        layout = self.costs.layout
        counts = project_ranking(self.ranking(), self.costs, self.budget).counts(layout)
        sizes = layout.group_sizes.to(torch.float64)
        return (counts / sizes).clamp(max=1 - 0.25 / sizes)

    def ranking(self) -> Tensor:
        """Return all channels from best to worst by worth per cost, int64 [C]."""
        return rank_by_worth(self.worth, self.costs, self.budget.kind)

    def counts(self, action: Tensor) -> Tensor:
        """Return the channels of each group that an action keeps.

        Args:
            action: float [G] in [-1, 1]; what lies outside is brought to the edge, and NaN to 0.

        Returns:
            int64 [G], at least 1 each and within the budget.
        """
        inside = action.to(torch.float64).nan_to_num(0.0).clamp(-1, 1)
        logits = torch.logit(self.prior_ratios) + ACTION_SCALE * inside
        return project_ratios(torch.sigmoid(logits), self.costs, self.budget)

    def selection(self, action: Tensor) -> Selection:
        """Return the selection an action makes: the worthiest channels of each group."""
        return keep_top(self.worth, self.counts(action), self.costs.layout)

    def prior(self) -> Selection:
        """Return the selection of the action 0."""
        return self.selection(torch.zeros(len(self.costs.layout.groups)))
