"""Widths of a cut network: how many channels of each group stay under a budget, and which.

A selector proposes channels under a budget of multiply-accumulates or parameters (`spatl.selection`). Hardware computes
eight channels at once or more, so that the counts it proposes are then brought to multiples of eight, all by one common
factor that meets the budget, and what is left of the budget is filled up by worth per cost.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal, get_args

from torch import Tensor, nn

from spatl.channels.costs import Budget, Costs, smallest_budget
from spatl.channels.flops import FlopsModel
from spatl.channels.prunable import Prunable
from spatl.channels.selection import Selection
from spatl.data import Examples
from spatl.errors import BudgetError, ConfigError
from spatl.extensions.references import is_reference
from spatl.seeding import generator
from spatl.selection.protocol import SelectionRequest
from spatl.selection.selectors import make_selector
from spatl.selection.signal import channel_signal
from spatl.selection.widths import MULTIPLE, Widths

SELECTORS: Final = ("signal", "agent", "magnitude", "random")
"""Selectors that choose by a trained network alone; the others ask for the update of a round."""

BudgetKind = Literal["flops", "parameters", "latency_ms"]

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
        return self._widths(kind).floor()

    def _model(self, kind: Literal["flops", "parameters"]) -> FlopsModel:
        return self.prunable.trace.flops if kind == "flops" else self.prunable.parameters

    def _widths(self, kind: Literal["flops", "parameters"]) -> Widths:
        return Widths(self.prunable, self._model(kind), self.worth, self.exact)

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
