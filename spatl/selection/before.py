"""Choice of a sub-network before local training: a client trains what it chose, and nothing else.

A selector proposes channels under the client's budget, as it does after training. What it proposes is then completed to
a network that can be cut out of the whole one, and its counts are brought to multiples of eight where the budget pays
for that: on a processor other widths cost nearly as much as the next multiple (`spatl.selection.widths`).
"""

from dataclasses import dataclass, replace

import torch

from spatl.channels.costs import Budget, Costs, check_floor, smallest_budget
from spatl.channels.flops import FlopsModel
from spatl.channels.prunable import Prunable
from spatl.channels.selection import Selection
from spatl.errors import BudgetError
from spatl.selection.projection import keep_top
from spatl.selection.protocol import Choice, SelectionRequest, Selector
from spatl.selection.widths import Widths


@dataclass(frozen=True, eq=False)
class PartBudget:
    """Budget of a sub-network: a share of a cost that is a function of the channel counts.

    Attributes:
        model: The cost.
        limit: The share, in (0, 1].
    """

    model: FlopsModel
    limit: float

    @classmethod
    def of(cls, budget: Budget, costs: Costs, prunable: Prunable) -> "PartBudget":
        """Return a client's budget as such a one.

        Of `keep_ratio` it is the share of the entries that a sub-network has, and of `uplink_bytes` as many of them as
        that many bytes hold, whichever channels they are of.
        """
        if budget.kind == "flops_ratio":
            return cls(prunable.trace.flops, min(1.0, budget.limit))
        if budget.kind == "keep_ratio":
            return cls(prunable.parameters, min(1.0, budget.limit))
        number, layout = costs.layout.num_entries, costs.layout
        low, high = 0, number
        while low < high:
            middle = (low + high + 1) // 2
            fits = costs.update_bytes(middle, layout.num_channels - 1) <= budget.limit
            low, high = (middle, high) if fits else (low, middle - 1)
        return cls(prunable.parameters, max(low, 1) / max(1, number))

    def widths(self, prunable: Prunable, worth: torch.Tensor) -> Widths:
        """Return the widths that meet it: multiples of eight, or any where the fewest of these cost too much."""
        widths = Widths(prunable, self.model, worth, exact=False)
        if widths.floor() <= self.limit:
            return widths
        return Widths(prunable, self.model, worth, exact=True)


def check_part_budget(budget: Budget, costs: Costs, prunable: Prunable, *, source: str = "selection") -> None:
    """Raise unless some sub-network meets a client's budget.

    Args:
        budget: What may be spent.
        costs: The encoder's.
        prunable: What may be cut of it.
        source: Where the budget was set, for the message.

    Raises:
        BudgetError: The least that may be left of the network costs more.
    """
    own = PartBudget.of(budget, costs, prunable)
    nothing = torch.zeros(costs.layout.num_channels, dtype=torch.float64)
    floor = Widths(prunable, own.model, nothing, exact=True).floor()
    what = "the least that may be left of the network to train already costs"
    if budget.kind != "uplink_bytes":
        check_floor(budget, floor, what, source)
    elif floor > own.limit:
        entries = int(floor * costs.layout.num_entries) + 1
        least = smallest_budget(costs.update_bytes(entries, costs.layout.num_channels - 1), budget.kind)
        raise BudgetError(
            f"{source}.{budget.kind} is {budget.limit:g}, but {what} {least}; raise it to at least {least}"
        )


def choose_part(selector: Selector, request: SelectionRequest, prunable: Prunable) -> Choice:
    """Return the channels that a client will train, which travel afterwards: a closed selection within its budget.

    Args:
        selector: What proposes them.
        request: The request, with the client's own budget.
        prunable: What may be cut of the encoder.

    Raises:
        BudgetError: The budget does not pay for the least that may be left.
    """
    budget = PartBudget.of(request.budget, request.costs, prunable)
    costs = Costs(replace(prunable.trace, flops=budget.model), request.costs.update_bytes)
    choice = selector(replace(request, costs=costs, budget=Budget("flops_ratio", budget.limit)))
    worth = (
        torch.zeros(costs.layout.num_channels, dtype=torch.float64) if choice.worth is None else choice.worth.double()
    )
    limit = budget.limit if choice.spends is None else min(budget.limit, choice.spends)
    found = replace(budget, limit=limit).widths(prunable, worth).fitted(choice.selection, limit)
    return replace(choice, selection=Selection(found.mask, closed=True))


def half_of(prunable: Prunable) -> Selection:
    """Return a selection of half of each group that may be cut, completed: an example of a part."""
    counts = (prunable.layout.group_sizes + 1) // 2
    order = torch.zeros(prunable.layout.num_channels, dtype=torch.float64)
    found = prunable.completed(keep_top(order, counts, prunable.layout), order)
    return Selection(found.mask, closed=True)
