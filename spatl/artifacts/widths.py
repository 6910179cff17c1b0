"""Widths of a cut network: how many channels of each group stay under a budget, and which.

A selector proposes channels under a budget of multiply-accumulates or parameters (`spatl.selection`). Hardware computes
eight channels at once or more, so that the counts it proposes are then brought to multiples of eight, all by one common
factor that meets the budget, and what is left of the budget is filled up by worth per cost.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn

from spatl.artifacts.prunable import Prunable, groups_of
from spatl.channels.costs import Budget, Costs, smallest_budget
from spatl.channels.flops import FlopsModel
from spatl.channels.selection import Selection
from spatl.data import Examples
from spatl.errors import BudgetError, ConfigError
from spatl.extensions.references import is_reference
from spatl.seeding import generator
from spatl.selection.projection import keep_top
from spatl.selection.protocol import SelectionRequest
from spatl.selection.selectors import make_selector
from spatl.selection.signal import channel_signal

MULTIPLE: Final = 8
"""Channels come in multiples of so many, and a group is never cut below it."""
SELECTORS: Final = ("signal", "agent", "magnitude", "random")
"""Selectors that choose by a trained network alone; the others ask for the update of a round."""

BudgetKind = Literal["flops", "parameters", "latency_ms"]

_BISECTIONS = 40
_NUM_STEPS = 10**9  # of training, a share of which the agent may measure: here as much as it likes
_BATCH_SIZE = 64


@dataclass(frozen=True)
class CutBudget:
    """Budget of a cut network.

    Attributes:
        kind: `"flops"` (share of the network's multiply-accumulates), `"parameters"` (share of its parameters) or
            `"latency_ms"` (milliseconds for the example, one thread, measured where the network is cut).
        limit: The most it may be.

    Raises:
        ConfigError: The limit is not positive, or a share is above 1.
    """

    kind: BudgetKind
    limit: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(BudgetKind):
            raise ConfigError(f"a cut's budget must be one of {', '.join(get_args(BudgetKind))}, got {self.kind!r}")
        most = math.inf if self.kind == "latency_ms" else 1.0
        if not 0 < self.limit <= most or math.isinf(self.limit):
            expected = "positive" if self.kind == "latency_ms" else "in (0, 1]"
            raise ConfigError(f"{self.kind} must be {expected}, got {self.limit:g}")


@dataclass(frozen=True)
class CutAgent:
    """Settings of the agent when a network is cut: it measures cut networks, by the paper's reward.

    Attributes:
        samples: How many selections it measures beside its own and the prior.
        policy: A file with its weights, or None for those that ship with the package.
    """

    samples: int = 8
    policy: str | None = None
    reward: Literal["sent", "pruned"] = "pruned"
    tuning: Literal["search", "ppo"] = "search"
    tuning_rounds: int | None = None
    max_share: float = 1.0


@dataclass(frozen=True, eq=False)
class WidthRequest:
    """Request for the channels of a cut network.

    Attributes:
        network: The dense network in eval mode; it stays as it was.
        prunable: What may be cut of it.
        train: Examples that the signal is measured on.
        validation: Examples that the agent measures on.
        selector: One of `SELECTORS`, or `"package.module:name"` for one of the user's.
        exact: Whether any number of channels may stay, instead of multiples of eight.
        seed: Of the selector's random numbers.
        agent: Settings of the agent.

    Raises:
        ConfigError: The selector is none of these.
    """

    network: nn.Module
    prunable: Prunable
    train: Examples
    validation: Examples
    selector: str = "signal"
    exact: bool = False
    seed: int = 0
    agent: CutAgent = CutAgent()

    def __post_init__(self) -> None:
        if self.selector not in SELECTORS and not is_reference(self.selector):
            raise ConfigError(
                f"the selector of a cut must be one of {', '.join(SELECTORS)} or package.module:name, "
                f"got {self.selector!r}"
            )

    @cached_property
    def worth(self) -> Tensor:
        """float64 [C], the signal of each channel, which decides between channels of a group."""
        return channel_signal(self.network, self.prunable.layout, self.prunable.trace.readers, self.train.images)

    def select(self, kind: Literal["flops", "parameters"], limit: float) -> Selection:
        """Return the channels that stay.

        Args:
            kind: What the budget limits.
            limit: A share in (0, 1].

        Raises:
            BudgetError: The least that must stay costs more.
        """
        floor = self.floor(kind)
        if floor > limit:
            smallest = smallest_budget(floor, "flops_ratio")
            raise BudgetError(
                f"{kind} is {limit:g}, but the least that may be left of the network ({self._least()}) already costs "
                f"{smallest}; raise it to at least {smallest}"
            )
        return self._widths(kind).fitted(self._proposed(self._model(kind), limit), limit)

    def floor(self, kind: Literal["flops", "parameters"]) -> float:
        """Return the cost of the least that may be left of the network, a share in (0, 1]."""
        widths = self._widths(kind)
        return widths.cost(widths.selection([levels[0] for levels in widths.levels]))

    def _model(self, kind: Literal["flops", "parameters"]) -> FlopsModel:
        return self.prunable.trace.flops if kind == "flops" else self.prunable.parameters

    def _widths(self, kind: Literal["flops", "parameters"]) -> "_Widths":
        return _Widths(self.prunable, self._model(kind), self.worth, self.exact)

    def _least(self) -> str:
        return "1 channel of each group" if self.exact else f"{MULTIPLE} channels of each group, narrower ones whole"

    def _proposed(self, model: FlopsModel, limit: float) -> Selection:
        """Return what the selector chooses, which knows nothing of multiples."""
        layout = self.prunable.layout
        tensors = dict(self.network.named_parameters()) | dict(self.network.named_buffers())
        weights = layout.flatten(tensors)
        costs = Costs(replace(self.prunable.trace, flops=model), _no_bytes)
        request = SelectionRequest(
            model=self.network, weights=weights, update=weights, costs=costs, budget=Budget("flops_ratio", limit),
            train=self.train, validation=self.validation, num_steps=_NUM_STEPS, batch_size=_BATCH_SIZE, server_round=1,
            generator=generator(self.seed, "cut"), state={},
        )  # fmt: skip
        return make_selector(self.selector, self.agent)(request).selection


class _Widths:
    """Counts of channels by group, what they cost, and which channels they are."""

    def __init__(self, prunable: Prunable, model: FlopsModel, worth: Tensor, exact: bool) -> None:
        self._prunable = prunable
        self._model = model
        self._worth = worth
        self._exact = exact
        self._order = self._spread(worth)
        self.levels = [
            [group.size] if whole else _levels(group.size, 1 if exact else math.lcm(MULTIPLE, divisor), exact)
            for group, whole, divisor in zip(
                prunable.layout.groups, prunable.is_whole.tolist(), prunable.divisors.tolist(), strict=True
            )
        ]

    def selection(self, counts: Sequence[int]) -> Selection:
        """Return the best channels of each group, completed; more of them where that leaves a count that is allowed."""
        layout = self._prunable.layout
        while True:
            found = self._prunable.completed(keep_top(self._order, torch.tensor(counts), layout), self._order)
            actual = found.counts(layout).tolist()
            rounded = [
                next(level for level in levels if level >= number)
                for levels, number in zip(self.levels, actual, strict=True)
            ]
            if rounded == actual:
                return found
            counts = rounded

    def cost(self, selection: Selection) -> float:
        return self._model.ratio(selection.counts(self._prunable.layout))

    def fitted(self, proposed: Selection, limit: float) -> Selection:
        """Return a selection within the budget, with allowed counts, as near to a proposed one as can be."""
        layout = self._prunable.layout
        # What is proposed comes first in each group, and then what is worth most.
        worth = self._worth / self._worth.max().clamp(min=1e-30)
        self._order = self._spread(worth + 2.0 * proposed.mask)
        completed = self._prunable.completed(proposed, self._order)
        if self._exact and self.cost(completed) <= limit:
            return completed
        wanted = completed.counts(layout).tolist()
        if self.cost(self.selection([levels[0] for levels in self.levels])) > limit:
            self._order = self._spread(worth)  # the order of the floor, where the other costs more to complete
        counts = self._scaled(wanted, limit)
        return self.selection(self._filled(counts, worth, limit))

    def _scaled(self, wanted: Sequence[int], limit: float) -> list[int]:
        """Return the largest counts near to one multiple of those wanted that the budget pays for."""

        def counts(factor: float) -> list[int]:
            return [
                min(levels, key=lambda level: (abs(level - factor * number), level))
                for levels, number in zip(self.levels, wanted, strict=True)
            ]

        low, high = 0.0, max(levels[-1] / number for levels, number in zip(self.levels, wanted, strict=True))
        if self.cost(self.selection(counts(high))) <= limit:
            return counts(high)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if self.cost(self.selection(counts(middle))) <= limit:
                low = middle
            else:
                high = middle
        return counts(low)

    def _filled(self, counts: list[int], worth: Tensor, limit: float) -> list[int]:
        """Return larger counts as long as the budget pays for them, by worth per cost."""
        layout, counts = self._prunable.layout, list(counts)
        now = self.cost(self.selection(counts))
        while True:
            steps = []
            for number, levels in enumerate(self.levels):
                later = [level for level in levels if level > counts[number]]
                if not later:
                    continue
                more = [*counts[:number], later[0], *counts[number + 1 :]]
                cost = self.cost(self.selection(more))
                if cost > limit:
                    continue
                group = layout.groups[number]
                own = slice(group.first, group.first + group.size)
                added = self._order[own].argsort(descending=True, stable=True)[counts[number] : later[0]]
                steps.append((float(worth[own][added].sum()) / max(cost - now, 1e-12), -number, more, cost))
            if not steps:
                return counts
            *_, counts, now = max(steps, key=lambda step: step[:2])

    def _spread(self, order: Tensor) -> Tensor:
        """Return worths by which the best channels of a group lie evenly in the groups of a grouped convolution."""
        layout, spread = self._prunable.layout, order
        for side in self._prunable.sides:
            if len(side) == 1:
                continue
            place = torch.full((layout.num_channels,), -1.0, dtype=torch.float64)
            for row in side:
                own = torch.tensor(sorted(set(row[row >= 0].tolist())), dtype=torch.int64)
                for group in groups_of(own, layout):
                    inside = own[layout.group_of[own] == group]
                    ranks = spread[inside].argsort(descending=True, stable=True).argsort()
                    place[inside] = ranks.to(torch.float64)
            touched = place >= 0
            scale = (spread.max() - spread.min() + 1).item()
            spread = torch.where(touched, (spread - spread.min()) / scale - place, spread)
        return spread


def _levels(size: int, multiple: int, exact: bool) -> list[int]:
    """Return the counts that a group may have, ascending."""
    if exact:
        return list(range(1, size + 1))
    return [*range(multiple, size, multiple), size]


def _no_bytes(num_values: int, num_channels: int) -> int:
    raise AssertionError("a cut has no budget in bytes")


def latency_limited(
    select: Callable[[float], Selection], measure: Callable[[Selection], float], limit: float, *, floor: float,
    most: int,
) -> Selection:  # fmt: skip
    """Return the widest of some selections whose latency is within a limit, by bisection over the share of FLOPs.

    Args:
        select: Returns the selection for a share.
        measure: Measures the latency of a selection's network in milliseconds.
        limit: The most it may be.
        floor: The smallest share.
        most: How many networks may be measured, at least 2.

    Raises:
        BudgetError: The narrowest network is slower.
    """
    low, high = floor, 1.0
    best, fastest = select(high), math.inf
    if measure(best) <= limit:
        return best
    best = select(low)
    fastest = measure(best)
    if fastest > limit:
        smallest = f"{math.ceil(1e3 * fastest) / 1e3:.3f}"
        raise BudgetError(
            f"latency_ms is {limit:g}, but the least that may be left of the network already takes {smallest} ms here; "
            f"raise it to at least {smallest}"
        )
    for _ in range(most - 2):
        middle = (low + high) / 2
        between = select(middle)
        if measure(between) <= limit:
            low, best = middle, between
        else:
            high = middle
    return best
