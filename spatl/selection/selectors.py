"""Selectors pick the salient channels of a trained encoder under the client's budget; one protocol serves them all.

A selector may look at the client's weights, its update and its validation split, may keep tensors of its own between
rounds, and must return a selection the budget pays for. It never sees the test split.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from spatl.data import Examples
from spatl.selection.budget import Budget, Costs, project_ranking
from spatl.selection.layout import EncoderLayout
from spatl.selection.selection import Selection, select_all


@dataclass(frozen=True, eq=False)
class SelectionRequest:
    """What a selector is given after the client's local training.

    Attributes:
        model: The trained network; a selector leaves it as it found it.
        weights: float32 [N], the trained encoder (y_i) in the layout's order.
        update: float32 [N], y_i - x.
        costs: The encoder: its layout, what its channels cost, and which layers read them.
        budget: What the client may spend.
        validation: The client's validation split, for selectors that measure.
        server_round: The current round, from 1.
        generator: The selector's random numbers for this round.
        state: What the selector returned as its state in the client's last round; empty at first.
    """

    model: nn.Module
    weights: Tensor
    update: Tensor
    costs: Costs
    budget: Budget
    validation: Examples
    server_round: int
    generator: torch.Generator
    state: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Choice:
    """What a selector returns: the selection, its state for the next round, figures worth showing."""

    selection: Selection
    state: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


class Selector(Protocol):
    """Picks the channels that travel."""

    def __call__(self, request: SelectionRequest) -> Choice:
        """Return a choice within `request.budget`."""
        ...


@dataclass(frozen=True)
class SelectorEntry:
    """One row of the table: how to make the selector, and what it does."""

    make: Callable[[], Selector]
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
    layout = request.costs.layout
    views = layout.unflatten(request.weights[: layout.num_parameter_entries])
    relative = torch.cat([(v / v.square().mean().sqrt().clamp(min=1e-12)).reshape(-1) for v in views.values()])
    scores = mean_energy(relative, layout)
    return Choice(project_ranking(scores.argsort(descending=True, stable=True), request.costs, request.budget))


def rank_update(request: SelectionRequest) -> Choice:
    """Send the channels that moved most for their size: energy of the update per entry, ranked across all layers."""
    layout = request.costs.layout
    scores = mean_energy(request.update[: layout.num_parameter_entries], layout)
    return Choice(project_ranking(scores.argsort(descending=True, stable=True), request.costs, request.budget))


SELECTORS: dict[str, SelectorEntry] = {
    "all": SelectorEntry(lambda: rank_all, "every channel; ignores the budget"),
    "random": SelectorEntry(lambda: rank_random, "a random set of channels, drawn anew each round"),
    "magnitude": SelectorEntry(lambda: rank_magnitude, "largest weights, normalised per layer, across all layers"),
    "update": SelectorEntry(lambda: rank_update, "largest update energy per byte, across all layers"),
}
