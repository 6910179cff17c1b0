"""Selectors pick the salient channels of a trained encoder under the client's budget; one protocol serves them all.

A selector may look at the client's weights, its update and its validation split, may keep tensors of its own between
rounds, and must return a selection the budget pays for. It never sees the test split.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from spatl.channels.selection import select_all
from spatl.extensions.references import is_reference, row_of
from spatl.selection.energy import drawn_energy, magnitude_scores, mean_energy
from spatl.selection.ordered import drawn_width, first_channels, rolling_window
from spatl.selection.projection import project_ranking, rank_by_worth
from spatl.selection.protocol import AgentSettings, Choice, SelectionRequest, Selector
from spatl.selection.signal import channel_signal
from spatl.selection.users import SELECTOR_DOOR, UsersSelector


@dataclass(frozen=True)
class SelectorEntry:
    """One row of the table: how to make the selector, and what it does.

    Attributes:
        make: Makes it.
        description: What it does, in a line.
        of_update: Whether it goes by what moved in local training, so that it cannot choose before that.
        whole: Whether it chooses every channel, so that there is no budget to meet.
        narrows: Whether it may choose less than everything where the budget pays for that.
    """

    make: Callable[[AgentSettings], Selector]
    description: str
    of_update: bool = False
    whole: bool = False
    narrows: bool = False


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


def _agent(settings: AgentSettings) -> Selector:
    # By reference: this package knows nothing of the agents, and who selects otherwise does not load them.
    selector: Selector = importlib.import_module("agents.selector").AgentSelector(settings)
    return selector


SELECTORS: dict[str, SelectorEntry] = {
    "agent": SelectorEntry(
        _agent, "a learned policy sets each group's keep ratio; measured against its prior (section agent)"
    ),
    "all": SelectorEntry(lambda _: rank_all, "every channel; ignores the budget", whole=True),
    "able": SelectorEntry(
        lambda _: rank_all, "every channel, of clients whose budget pays for all; others do not train", whole=True
    ),
    "random": SelectorEntry(lambda _: rank_random, "a random set of channels, drawn anew each round"),
    "magnitude": SelectorEntry(lambda _: rank_magnitude, "largest weights, normalised per layer, across all layers"),
    "drawn": SelectorEntry(
        lambda _: rank_drawn, "drawn with probabilities proportional to update energy per cost", of_update=True
    ),
    "signal": SelectorEntry(lambda _: rank_signal, "most read by the next layers, per cost, across all layers"),
    "update": SelectorEntry(lambda _: rank_update, "largest update energy per byte, across all layers", of_update=True),
    "ordered": SelectorEntry(lambda _: first_channels, "the first channels of every group, one width for all"),
    "ordered-drawn": SelectorEntry(
        lambda _: drawn_width, "the same, in a width drawn each round from those within the budget", narrows=True
    ),
    "rolling": SelectorEntry(lambda _: rolling_window, "as ordered, from a channel on that is the next one each round"),
}


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
