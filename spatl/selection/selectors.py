"""Selectors pick the salient channels of a trained encoder under the client's budget; one protocol serves them all.

A selector may look at the client's weights, its update and its validation split, may keep tensors of its own between
rounds, and must return a selection the budget pays for. It never sees the test split.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from spatl.channels.costs import Budget, Costs, project_ranking, rank_by_worth
from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection, select_all
from spatl.data import Examples
from spatl.selection.signal import channel_signal


@dataclass(frozen=True, eq=False)
class SelectionRequest:
    """What a selector is given after the client's local training.

    Attributes:
        model: The trained network; a selector leaves it as it found it.
        weights: float32 [N], the trained encoder (y_i) in the layout's order.
        update: float32 [N], y_i - x.
        costs: The encoder: its layout, what its channels cost, and which layers read them.
        budget: What the client may spend.
        train: The client's training split.
        validation: The client's validation split, for selectors that measure.
        num_steps: How many optimizer steps the local training took.
        batch_size: Examples per step.
        server_round: The current round, from 1.
        generator: The selector's random numbers for this round.
        state: What the selector returned as its state in the client's last round; empty at first.
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


@dataclass(frozen=True, eq=False)
class Choice:
    """What a selector returns.

    Attributes:
        selection: The channels that travel.
        state: What it wants to be given in the client's next round.
        decision_seconds: How long it thought, without what it measured.
        gain: By how much the selection beats the selector's prior in accuracy on the validation split, at least 0;
            0 for a selector that measures nothing.
    """

    selection: Selection
    state: Mapping[str, Tensor] = field(default_factory=dict)
    decision_seconds: float = 0.0
    gain: float = 0.0


@dataclass(frozen=True, kw_only=True)
class AgentSettings:
    """How the agent selects.

    Attributes:
        reward: What it maximises: the accuracy the server's encoder gains by what is `"sent"`, or that of the
            `"pruned"` encoder (the paper's).
        samples: How many selections it measures beside its own and the prior.
        tuning: How samples are drawn: a local `"search"`, or `"ppo"` on its head (the paper's).
        tuning_rounds: Rounds of the federation in which it draws samples; None for all.
        max_share: The measuring may cost this share of the local training at most.
        policy: A file with its weights, or None for those that ship with the package.
    """

    reward: Literal["sent", "pruned"]
    samples: int
    tuning: Literal["search", "ppo"]
    tuning_rounds: int | None
    max_share: float
    policy: str | None


class Selector(Protocol):
    """Picks the channels that travel."""

    def __call__(self, request: SelectionRequest) -> Choice:
        """Return a choice within `request.budget`."""
        ...


@dataclass(frozen=True)
class SelectorEntry:
    """One row of the table: how to make the selector, and what it does."""

    make: Callable[[AgentSettings], Selector]
    description: str


def mean_energy(values: Tensor, layout: EncoderLayout) -> Tensor:
    """Return the mean square of each channel's parameters.

    Statistics that travel along are left out: they are of another scale, and would decide alone.

    Args:
        values: float32 [P], one value per trainable entry.
        layout: The encoder.

    Returns:
        float64 [C]; 0 for a channel without parameters.
    """
    owner = layout.owner[: layout.num_parameter_entries]
    energy = torch.zeros(layout.num_channels, dtype=torch.float64)
    energy.index_add_(0, owner, values.to(torch.float64).square())
    return energy / torch.bincount(owner, minlength=layout.num_channels).clamp(min=1)


def update_energy(update: Tensor, layout: EncoderLayout) -> Tensor:
    """Return the energy of each channel's part of an update: the sum of squares over its parameters, float64 [C]."""
    sizes = torch.bincount(layout.owner[: layout.num_parameter_entries], minlength=layout.num_channels)
    return mean_energy(update[: layout.num_parameter_entries], layout) * sizes


def drawn_energy(update: Tensor, layout: EncoderLayout, generator: torch.Generator) -> Tensor:
    """Return each channel's update energy over a number of its own from the exponential distribution, float64 [C].

    Ranking it per cost draws channels without replacement, with probabilities proportional to energy per cost
    (Efraimidis and Spirakis 2006): what moved most travels most often, but everything travels at times. Taking the
    largest every time leaves most of the encoder to a few clients, and was worse than a blind draw.
    """
    draws = torch.rand(layout.num_channels, generator=generator, dtype=torch.float64)
    return update_energy(update, layout) / -torch.log1p(-draws).clamp(max=-1e-12)


def magnitude_scores(weights: Tensor, layout: EncoderLayout) -> Tensor:
    """Return the mean square of each channel's weights, each over its layer's mean square (global L2), float64 [C].

    Args:
        weights: float32 [N] or [P].
        layout: The encoder.
    """
    views = layout.unflatten(weights[: layout.num_parameter_entries])
    relative = torch.cat([(v / v.square().mean().sqrt().clamp(min=1e-12)).reshape(-1) for v in views.values()])
    return mean_energy(relative, layout)


def rank_all(request: SelectionRequest) -> Choice:
    """Send every channel, whatever the budget."""
    return Choice(select_all(request.costs.layout))


def rank_random(request: SelectionRequest) -> Choice:
    """Send a random set of channels, drawn anew each round."""
    order = torch.randperm(request.costs.layout.num_channels, generator=request.generator)
    return Choice(project_ranking(order, request.costs, request.budget))


def rank_magnitude(request: SelectionRequest) -> Choice:
    """Send the channels with the largest weights: mean square of a channel's weights over its layer's mean square.

    A channel's score is the mean over the entries it owns, each divided by the mean square of its parameter, so that
    layers of different scale compete on equal terms (global L2 norm, normalised per layer).
    """
    scores = magnitude_scores(request.weights, request.costs.layout)
    return Choice(project_ranking(scores.argsort(descending=True, stable=True), request.costs, request.budget))


def rank_update(request: SelectionRequest) -> Choice:
    """Send the channels that moved most for their size: energy of the update per entry, ranked across all layers."""
    layout = request.costs.layout
    scores = mean_energy(request.update[: layout.num_parameter_entries], layout)
    return Choice(project_ranking(scores.argsort(descending=True, stable=True), request.costs, request.budget))


def rank_drawn(request: SelectionRequest) -> Choice:
    """Send channels drawn with probabilities proportional to their update energy per cost."""
    costs, budget = request.costs, request.budget
    energy = drawn_energy(request.update, costs.layout, request.generator)
    return Choice(project_ranking(rank_by_worth(energy, costs, budget.kind), costs, budget))


def rank_signal(request: SelectionRequest) -> Choice:
    """Send the channels that contribute most to the layers that read them, per cost under the budget."""
    costs, budget = request.costs, request.budget
    signal = channel_signal(request.model, costs.layout, costs.trace.readers, request.train.images)
    return Choice(project_ranking(rank_by_worth(signal, costs, budget.kind), costs, budget))


def _agent(settings: AgentSettings) -> Selector:
    # By reference: this package knows nothing of the agents, and who selects otherwise does not load them.
    selector: Selector = importlib.import_module("agents.selector").AgentSelector(settings)
    return selector


SELECTORS: dict[str, SelectorEntry] = {
    "agent": SelectorEntry(
        _agent, "a learned policy sets each group's keep ratio; measured against its prior (section agent)"
    ),
    "all": SelectorEntry(lambda _: rank_all, "every channel; ignores the budget"),
    "random": SelectorEntry(lambda _: rank_random, "a random set of channels, drawn anew each round"),
    "magnitude": SelectorEntry(lambda _: rank_magnitude, "largest weights, normalised per layer, across all layers"),
    "drawn": SelectorEntry(lambda _: rank_drawn, "drawn with probabilities proportional to update energy per cost"),
    "signal": SelectorEntry(lambda _: rank_signal, "most read by the next layers, per cost, across all layers"),
    "update": SelectorEntry(lambda _: rank_update, "largest update energy per byte, across all layers"),
}
