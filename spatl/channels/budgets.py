"""Budgets: what a client may spend in a round, and the least that there is to spend; for configs, without PyTorch."""

import math
from dataclasses import dataclass
from typing import Final, Literal, get_args

from spatl.errors import BudgetError

BudgetKind = Literal["keep_ratio", "flops_ratio", "uplink_bytes"]

BUDGET_KINDS: Final[tuple[BudgetKind, ...]] = get_args(BudgetKind)


@dataclass(frozen=True)
class Budget:
    """Budget of a client for one round.

    Attributes:
        kind: `"keep_ratio"` (share of the encoder's entries), `"flops_ratio"` (share of the encoder's
            multiply-accumulates) or `"uplink_bytes"` (bytes of the packed update).
        limit: The most it may be.
    """

    kind: BudgetKind
    limit: float


def check_floor(budget: Budget, floor: float, what: str, source: str = "selection") -> None:
    """Raise unless a budget reaches the least cost there is.

    Args:
        budget: What may be spent.
        floor: The least cost, in the unit of the budget's kind.
        what: What costs it, for the message: `"one channel already costs"`.
        source: Where the budget was set, likewise.

    Raises:
        BudgetError: It does not.
    """
    if floor > budget.limit:
        smallest = smallest_budget(floor, budget.kind)
        raise BudgetError(
            f"{source}.{budget.kind} is {budget.limit:g}, but {what} {smallest}; raise it to at least {smallest}"
        )


def smallest_budget(floor: float, kind: BudgetKind) -> str:
    """Write the smallest cost there is so that, taken as a budget, it suffices."""
    if kind == "uplink_bytes":
        return f"{floor:.0f}"
    steps = math.ceil(1e4 * floor)
    return f"{(steps if steps / 1e4 >= floor else steps + 1) / 1e4:.4f}"  # the product may have been rounded down
