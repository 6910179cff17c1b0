"""Protocol of a selector: what it is asked, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from spatl.channels.costs import Budget, Costs
from spatl.channels.selection import Selection
from spatl.data import Examples
from spatl.tasks.task import CLASSIFICATION, Task


@dataclass(frozen=True, eq=False)
class SelectionRequest:
    """Request to a selector after the client's local training, or before it (`selection.when`).

    Attributes:
        model: The trained network, or before training the one that came; a selector leaves it as it found it.
        weights: float32 [N], its encoder (y_i, or x) in the layout's order.
        update: float32 [N], y_i - x; before training nothing has moved, and it is 0.
        costs: The encoder: its layout, what its channels cost, and which layers read them.
        budget: What the client may spend.
        train: The client's training split.
        validation: The client's validation split, for selectors that measure; empty for a client of few examples, whose
            selector then falls back on what needs no measuring.
        num_steps: How many optimizer steps the local training took, or will take.
        batch_size: Examples per step.
        server_round: The current round, from 1.
        generator: The selector's random numbers for this round.
        state: What the selector returned as its state in the client's last round; empty at first.
        task: What the targets are for: its loss, and the score by which a choice is judged.
    """

    model: nn.Module
    weights: Tensor
    update: Tensor
    costs: Costs
    budget: Budget
    train: Examples
    validation: Examples
    num_steps: int
    batch_size: int
    server_round: int
    generator: torch.Generator
    state: Mapping[str, Tensor]
    task: Task = CLASSIFICATION


@dataclass(frozen=True, eq=False)
class Choice:
    """Choice of a selector.

    Attributes:
        selection: The channels that travel.
        state: What it wants to be given in the client's next round.
        decision_seconds: How long it thought, without what it measured.
        gain: By how much the selection beats the selector's prior in accuracy, or another task's score, on the
            validation split, at least 0; 0 for a selector that measures nothing.
        worth: float64 [C], by what the selector would take more channels of each group or leave some out, where their
            numbers have to be such as hardware computes well (`selection.when: before`); None where it does not say.
        spends: What of the budget it means to spend, a share of the whole cost, where that is less.
    """

    selection: Selection
    state: Mapping[str, Tensor] = field(default_factory=dict)
    decision_seconds: float = 0.0
    gain: float = 0.0
    worth: Tensor | None = None
    spends: float | None = None


class AgentSettings(Protocol):
    """Settings of the agent, as the section `agent` of a config has them.

    Attributes:
        reward: What it maximises: the accuracy the server's encoder gains by what is `"sent"`, or that of the
            `"pruned"` encoder (the paper's).
        samples: How many selections it measures beside its own and the prior.
        tuning: How samples are drawn: a local `"search"`, or `"ppo"` on its head (the paper's).
        tuning_rounds: Rounds of the federation in which it draws samples; None for all.
        max_share: The measuring may cost this share of the local training's time at most, which is estimated.
        policy: A file with its weights, or None for those that ship with the package.
    """

    @property
    def reward(self) -> Literal["sent", "pruned"]: ...  # noqa: D102
    @property
    def samples(self) -> int: ...  # noqa: D102
    @property
    def tuning(self) -> Literal["search", "ppo"]: ...  # noqa: D102
    @property
    def tuning_rounds(self) -> int | None: ...  # noqa: D102
    @property
    def max_share(self) -> float: ...  # noqa: D102
    @property
    def policy(self) -> str | None: ...  # noqa: D102


class Selector(Protocol):
    """Picks the channels that travel."""

    def __call__(self, request: SelectionRequest) -> Choice:
        """Return a choice within `request.budget`."""
        ...
