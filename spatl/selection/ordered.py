"""Uniform widths: the same share of every channel group, which of its channels being a matter of their places alone.

So small devices train small networks in HeteroFL (Diao, Ding, Tarokh, ICLR 2021, arXiv 2010.01264), FjORD (Horvath et
al., NeurIPS 2021, arXiv 2102.13451) and FedRolex (Alam et al., NeurIPS 2022, arXiv 2212.01548).
"""

from typing import Final

import torch
from torch import Tensor

from spatl.channels.costs import Budget, Costs, check_budget
from spatl.channels.layout import EncoderLayout
from spatl.selection.projection import keep_top
from spatl.selection.protocol import Choice, SelectionRequest

WIDTHS: Final = (0.2, 0.4, 0.6, 0.8)
"""Shares of every group that are drawn from, beside the largest that the budget pays for (FjORD, section 5)."""

_BISECTIONS = 40


def uniform_share(costs: Costs, budget: Budget) -> float:
    """Return the largest share of every group that a budget pays for, in (0, 1], to 2**-40.

    Raises:
        BudgetError: One channel of every group already costs more.
    """
    check_budget(budget, costs)
    low, high = 0.0, 1.0
    if costs.of(uniform_counts(costs.layout, high), budget.kind) <= budget.limit:
        return high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if costs.of(uniform_counts(costs.layout, middle), budget.kind) <= budget.limit:
            low = middle
        else:
            high = middle
    return low


def uniform_counts(layout: EncoderLayout, share: float) -> Tensor:
    """Return how many channels of each group a share of it is, int64 [G]: rounded, at least 1."""
    return (share * layout.group_sizes.double()).round().clamp(min=1).to(torch.int64)


def places_from(layout: EncoderLayout, start: int) -> Tensor:
    """Return a worth that falls along each group from one place on, around its end to the place before, float64 [C]."""
    worth = torch.zeros(layout.num_channels, dtype=torch.float64)
    for group in layout.groups:
        places = (torch.arange(group.size) - start) % group.size
        worth[group.first : group.first + group.size] = 1.0 - places.double() / group.size
    return worth


def first_channels(request: SelectionRequest) -> Choice:
    """Keep the first channels of every group: a narrow network lies within every wider one (HeteroFL)."""
    return _choice(request, uniform_share(request.costs, request.budget), start=0)


def rolling_window(request: SelectionRequest) -> Choice:
    """Keep a window of every group that starts one channel on in each round, and goes on around its end (FedRolex).

    In round j, from 0, of K channels those from j modulo K on (equation 2).
    """
    return _choice(request, uniform_share(request.costs, request.budget), start=request.server_round - 1)


def drawn_width(request: SelectionRequest) -> Choice:
    """Keep the first channels of every group, in a width drawn from those that the budget pays for (FjORD).

    Departures from its ordered dropout: a width is drawn for a round, where the paper draws one for each step, and
    nothing is distilled.
    """
    costs, budget = request.costs, request.budget
    largest = uniform_share(costs, budget)
    shares = [share for share in WIDTHS if share < largest] + [largest]
    share = shares[int(torch.randint(len(shares), (1,), generator=request.generator))]
    spends = costs.of(uniform_counts(costs.layout, share), budget.kind)
    return _choice(request, share, start=0, spends=min(spends, budget.limit))


def _choice(request: SelectionRequest, share: float, *, start: int, spends: float | None = None) -> Choice:
    layout = request.costs.layout
    worth = places_from(layout, start)
    return Choice(keep_top(worth, uniform_counts(layout, share), layout), worth=worth, spends=spends)
