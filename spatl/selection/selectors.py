"""Selectors pick the salient channels of a trained encoder under the client's budget; one protocol serves them all.

A selector may look at the client's weights, its update and its validation split, may keep tensors of its own between
rounds, and must return a selection the budget pays for. It never sees the test split.
"""

import torch

from spatl.channels.selection import select_all
from spatl.extensions.references import is_reference, row_of
from spatl.selection.energy import drawn_energy, magnitude_scores, mean_energy
from spatl.selection.projection import project_ranking, rank_by_worth
from spatl.selection.protocol import AgentSettings, Choice, SelectionRequest, Selector
from spatl.selection.signal import channel_signal
from spatl.selection.table import SELECTOR_DOOR, SELECTORS
from spatl.selection.users import UsersSelector

__all__ = [
    "SELECTORS", "make_selector", "rank_all", "rank_drawn", "rank_magnitude", "rank_random", "rank_signal",
    "rank_update",
]  # fmt: skip


def rank_all(request: SelectionRequest) -> Choice:
    """Send every channel, whatever the budget."""
    return Choice(select_all(request.costs.layout))


def rank_random(request: SelectionRequest) -> Choice:
    """Send a random set of channels, drawn anew each round."""
    order = torch.randperm(request.costs.layout.num_channels, generator=request.generator)
    worth = 1.0 - order.argsort().double() / max(1, len(order))
    return Choice(project_ranking(order, request.costs, request.budget), worth=worth)


def rank_magnitude(request: SelectionRequest) -> Choice:
    """Send the channels with the largest weights: mean square of a channel's weights over its layer's mean square.

    A channel's score is the mean over the entries it owns, each divided by the mean square of its parameter, so that
    layers of different scale compete on equal terms (global L2 norm, normalised per layer).
    """
    scores = magnitude_scores(request.weights, request.costs.layout)
    ranking = scores.argsort(descending=True, stable=True)
    return Choice(project_ranking(ranking, request.costs, request.budget), worth=scores)


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
    signal = channel_signal(request.model, costs.layout, costs.trace.readers, request.train.inputs)
    return Choice(project_ranking(rank_by_worth(signal, costs, budget.kind), costs, budget), worth=signal)


def make_selector(name: str, settings: AgentSettings) -> Selector:
    """Return a selector.

    Args:
        name: A key of `SELECTORS`, or `"package.module:name"` for one of the user's.
        settings: What the agent needs.

    Raises:
        ConfigError: There is none of this name, or the user's is not there, or none.
    """
    if is_reference(name):
        return UsersSelector(name)
    return row_of(name, SELECTORS, SELECTOR_DOOR).make(settings)
