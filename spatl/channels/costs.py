"""Budgets and costs: what a client may spend in a round, and what channel counts cost in the same unit.

Costs are those of the integer channel counts, never estimates. A selection keeps at least one channel of every group,
so that it is always a network; a budget below that floor is an error that names the smallest possible value.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spatl.channels.budgets import BUDGET_KINDS, Budget, BudgetKind, check_floor, smallest_budget
from spatl.channels.flops import FlopsModel
from spatl.channels.layout import EncoderLayout
from spatl.channels.trace import EncoderTrace

__all__ = [
    "BUDGET_KINDS", "Budget", "BudgetKind", "Costs", "check_budget", "check_floor", "smallest_budget",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Costs:
    """The exact cost of channel counts under one budget.

    Attributes:
        trace: The encoder's layout, cost model and readers.
        update_bytes: The length in bytes of a packed update with so many values of so many channels.
    """

    trace: EncoderTrace
    update_bytes: Callable[[int, int], int]

    @property
    def layout(self) -> EncoderLayout:
        """The encoder's layout."""
        return self.trace.layout

    @property
    def flops(self) -> FlopsModel:
        """Cost of computing the encoder's channels."""
        return self.trace.flops

    def of(self, counts: Tensor, kind: BudgetKind) -> float:
        """The cost of keeping `counts` (int64 [G]) channels of each group, in the unit of the budget's kind."""
        if kind == "flops_ratio":
            return self.flops.ratio(counts)
        num_values = int((self.layout.group_entries * counts).sum())
        if kind == "keep_ratio":
            return num_values / max(1, self.layout.num_entries)
        return float(self.update_bytes(num_values, int(counts.sum())))

    def marginal(self, kind: BudgetKind) -> Tensor:
        """float64 [G]: the share of the whole cost that goes when a whole encoder loses one channel of a group."""
        if kind == "flops_ratio":
            return self.flops.marginal(self.layout.group_sizes)
        return self.layout.group_entries.to(torch.float64) / max(1, self.layout.num_entries)


def check_budget(budget: Budget, costs: Costs, *, source: str = "selection") -> None:
    """Raise unless some selection meets the budget.

    Args:
        budget: What may be spent.
        costs: The encoder's costs.
        source: Where the budget was set, for the message.

    Raises:
        BudgetError: One channel of every group already costs more.
    """
    if not costs.layout.groups:
        return
    floor = costs.of(torch.ones(len(costs.layout.groups), dtype=torch.int64), budget.kind)
    check_floor(budget, floor, f"one channel of each of the {len(costs.layout.groups)} groups already costs", source)
