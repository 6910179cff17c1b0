"""Graph of a problem, as the agent sees it: its nodes are channel groups, and its features know no architecture.

An edge leads from group i to group j where a layer reads i and writes j; it follows from the same dependency graph as
the groups. All features are shares, ratios or logarithms, so that a network twice as wide looks much the same. The
order of the nodes carries no meaning.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from agents.selection_problem import Problem

NUM_FEATURES: Final = 21
_KNOTS: Final = (0.125, 0.25, 0.5, 0.75)


@dataclass(frozen=True, eq=False)
class Graph:
    """Graph of a problem: features of its nodes, and edges.

    Attributes:
        nodes: float32 [G, `NUM_FEATURES`].
        edges: float32 [G, G]; row j holds the shares of the groups that j is computed from, its sum is 1 or 0.
    """

    nodes: Tensor
    edges: Tensor


def make_graph(problem: Problem) -> Graph:
    """Describe a problem."""
    costs, budget = problem.costs, problem.budget
    layout, flops = costs.layout, costs.flops
    sizes = layout.group_sizes.to(torch.float64)
    adjacency = (flops.outputs > 0).T.to(torch.float64) @ (flops.inputs > 0).to(torch.float64)
    adjacency = adjacency.reshape(len(sizes), len(sizes))
    loops = adjacency.diagonal().clone()
    adjacency.fill_diagonal_(0)

    prior = problem.prior_ratios
    prior_logit = torch.logit(prior)
    entries = layout.group_entries * sizes / max(1, layout.num_entries)
    price = costs.marginal(budget.kind) * sizes
    macs = costs.marginal("flops_ratio") * sizes
    curve, kept = _concentration(problem, prior)
    total = _per_group(problem, problem.worth)
    mean_log_worth = _log(total / total.sum().clamp(min=1e-30) / entries.clamp(min=1e-12))
    limit = torch.full_like(sizes, _limit_logit(problem))
    columns = [
        sizes.log2() / 8,
        _log(entries) / 4,
        _log(macs) / 4,
        _log(price) / 4,
        _log(macs / entries.clamp(min=1e-12)) / 4,
        prior_logit / 3,
        (prior_logit - (prior_logit * price).sum() / price.sum().clamp(min=1e-12)) / 3,
        limit / 3,
        torch.full_like(sizes, float(budget.kind == "flops_ratio")),
        torch.full_like(sizes, float(problem.objective == "sent")),
        mean_log_worth / 4,
        *(share for share in curve),
        kept,
        torch.arange(len(sizes), dtype=torch.float64) / max(1, len(sizes) - 1),
        (adjacency > 0).sum(0).to(torch.float64).log1p(),
        (adjacency > 0).sum(1).to(torch.float64).log1p(),
        (flops.outputs > 0).sum(0).to(torch.float64).log1p(),
        loops.log1p(),
    ]
    edges = adjacency / adjacency.sum(1, keepdim=True).clamp(min=1e-12)
    nodes = torch.stack(columns, 1).clamp(-5, 5).to(torch.float32)
    assert nodes.shape[1] == NUM_FEATURES
    return Graph(nodes, edges.to(torch.float32))


def _per_group(problem: Problem, values: Tensor) -> Tensor:
    layout = problem.costs.layout
    return torch.zeros(len(layout.groups), dtype=torch.float64).index_add_(0, layout.group_of, values)


def _concentration(problem: Problem, ratios: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the shares of groups' worth in their best 1/8, 1/4, 1/2, 3/4 of channels, and in those the prior keeps."""
    layout = problem.costs.layout
    curve = torch.zeros(len(layout.groups), len(_KNOTS) + 1, dtype=torch.float64)
    for position, group in enumerate(layout.groups):
        worth = problem.worth[group.first : group.first + group.size].sort(descending=True).values
        cumulated = torch.cat([torch.zeros(1, dtype=torch.float64), worth.cumsum(0)])
        cumulated = cumulated / cumulated[-1].clamp(min=1e-30)
        places = torch.tensor([*_KNOTS, float(ratios[position])], dtype=torch.float64) * group.size
        below = places.floor().to(torch.int64).clamp(max=group.size - 1)
        part = places - below
        curve[position] = cumulated[below] * (1 - part) + cumulated[below + 1] * part
    return list(curve[:, :-1].T), curve[:, -1]


def _limit_logit(problem: Problem) -> float:
    """Return the budget as the logit of a share of the whole encoder's cost."""
    costs, budget = problem.costs, problem.budget
    whole = costs.of(costs.layout.group_sizes, budget.kind)
    share = min(max(budget.limit / max(whole, 1e-12), 0.01), 0.99)
    return float(torch.logit(torch.tensor(share, dtype=torch.float64)))


def _log(values: Tensor) -> Tensor:
    return values.clamp(min=1e-12).log()
