"""Projection of a ranking, or of keep ratios, onto a budget: what is kept is met exactly, never exceeded."""

from collections.abc import Callable

import torch
from torch import Tensor

from spatl.channels.costs import Budget, BudgetKind, Costs, check_budget
from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection

_BISECTIONS = 60


def rank_by_worth(worth: Tensor, costs: Costs, kind: BudgetKind) -> Tensor:
    """Return all channels from best to worst by worth per cost, as one fills a knapsack, int64 [C].

    Args:
        worth: float64 [C], at least 0.
        costs: The encoder's costs.
        kind: The unit of the cost.
    """
    price = costs.marginal(kind).clamp(min=1e-12)[costs.layout.group_of]
    return (worth / price).argsort(descending=True, stable=True)


def project_ranking(ranking: Tensor, costs: Costs, budget: Budget) -> Selection:
    """Keep the best channels of a global ranking that the budget pays for.

    The best channel of every group comes first, whatever its rank; then the rest in order, as many as fit.

    Args:
        ranking: int64 [C], channel indices from best to worst.
        costs: The encoder's costs.
        budget: What may be spent.

    Returns:
        A selection within the budget.

    Raises:
        BudgetError: One channel of every group already costs more.
    """
    check_budget(budget, costs)
    layout = costs.layout
    leading = torch.zeros(len(ranking), dtype=torch.bool)
    leading[group_leaders(ranking, layout)] = True
    order = torch.cat([ranking[leading], ranking[~leading]])
    ordered_groups = layout.group_of[order]

    def cost(length: int) -> float:
        counts = torch.bincount(ordered_groups[:length], minlength=len(layout.groups))
        return costs.of(counts, budget.kind)

    length = longest_prefix(cost, budget.limit, low=len(layout.groups), high=len(order))
    mask = torch.zeros(layout.num_channels, dtype=torch.bool)
    mask[order[:length]] = True
    return Selection(mask)


def group_leaders(ranking: Tensor, layout: EncoderLayout) -> Tensor:
    """int64 [G]: where in a ranking of all channels (int64 [C], from best to worst) each group's best one stands."""
    groups = layout.group_of[ranking]
    firsts = [int((groups == group).nonzero()[0]) for group in range(len(layout.groups))]
    return torch.tensor(firsts, dtype=torch.int64)


def longest_prefix(cost: Callable[[int], float], limit: float, *, low: int, high: int) -> int:
    """Return the greatest length in `low..high` that costs at most the limit; `low` does, and cost never falls."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= limit else (low, middle - 1)
    return low


def project_ratios(ratios: Tensor, costs: Costs, budget: Budget) -> Tensor:
    """Turn proposed keep ratios per group into channel counts within the budget, by one common shift of their logits.

    Args:
        ratios: float [G] in (0, 1), the proposal.
        costs: The encoder's costs.
        budget: What may be spent.

    Returns:
        int64 [G], at least 1 each; the largest counts along the shift that the budget pays for.

    Raises:
        BudgetError: One channel of every group already costs more.
        ValueError: A ratio is not a number.
    """
    check_budget(budget, costs)
    if bool(ratios.isnan().any()):
        raise ValueError("keep ratios must be numbers, got NaN")
    sizes = costs.layout.group_sizes.to(torch.float64)
    logits = torch.logit(ratios.to(torch.float64), eps=1e-6)

    def counts(shift: float) -> Tensor:
        return (torch.sigmoid(logits + shift) * sizes).round().clamp(min=1).to(torch.int64)

    low, high = -40.0, 40.0
    affordable, too_many = counts(low), counts(high)
    if costs.of(too_many, budget.kind) <= budget.limit:
        return too_many
    for _ in range(_BISECTIONS):
        if int((too_many - affordable).sum()) == 1:  # nothing lies between them
            break
        middle = (low + high) / 2
        between = counts(middle)
        if costs.of(between, budget.kind) <= budget.limit:
            low, affordable = middle, between
        else:
            high, too_many = middle, between
    return affordable


def keep_top(scores: Tensor, counts: Tensor, layout: EncoderLayout) -> Selection:
    """Keep the `counts` [G] channels with the highest `scores` [C] inside each group."""
    mask = torch.zeros(layout.num_channels, dtype=torch.bool)
    for group, count in zip(layout.groups, counts.tolist(), strict=True):
        best = scores[group.first : group.first + group.size].argsort(descending=True, stable=True)[:count]
        mask[group.first + best] = True
    return Selection(mask)
