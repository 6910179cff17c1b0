"""Table of selectors, by the name in a config: facts, and what makes each, which is imported when one is made."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from spatl.errors import ConfigError
from spatl.extensions.late import LateModule
from spatl.extensions.references import Door

if TYPE_CHECKING:
    from spatl.selection import ordered, selectors
    from spatl.selection.protocol import AgentSettings, Selector
else:
    ordered, selectors = LateModule("spatl.selection.ordered"), LateModule("spatl.selection.selectors")

SELECTOR_DOOR: Final = Door(
    "selector", "selection.selector", "package.module:selector", error=ConfigError,
    expected="a function of a SelectionRequest, or a class that makes such a one when it is called without arguments",
)  # fmt: skip


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

    make: "Callable[[AgentSettings], Selector]"
    description: str
    of_update: bool = False
    whole: bool = False
    narrows: bool = False


def _agent(settings: "AgentSettings") -> "Selector":
    # By reference: this package knows nothing of the agents, and who selects otherwise does not load them.
    selector: Selector = importlib.import_module("agents.selector").AgentSelector(settings)
    return selector


SELECTORS: dict[str, SelectorEntry] = {
    "agent": SelectorEntry(
        _agent, "a learned policy sets each group's keep ratio; measured against its prior (section agent)"
    ),
    "all": SelectorEntry(lambda _: selectors.rank_all, "every channel; ignores the budget", whole=True),
    "able": SelectorEntry(
        lambda _: selectors.rank_all,
        "every channel, of clients whose budget pays for all; others do not train",
        whole=True,
    ),
    "random": SelectorEntry(lambda _: selectors.rank_random, "a random set of channels, drawn anew each round"),
    "magnitude": SelectorEntry(
        lambda _: selectors.rank_magnitude, "largest weights, normalised per layer, across all layers"
    ),
    "drawn": SelectorEntry(
        lambda _: selectors.rank_drawn,
        "drawn with probabilities proportional to update energy per cost",
        of_update=True,
    ),
    "signal": SelectorEntry(
        lambda _: selectors.rank_signal, "most read by the next layers, per cost, across all layers"
    ),
    "update": SelectorEntry(
        lambda _: selectors.rank_update, "largest update energy per byte, across all layers", of_update=True
    ),
    "ordered": SelectorEntry(lambda _: ordered.first_channels, "the first channels of every group, one width for all"),
    "ordered-drawn": SelectorEntry(
        lambda _: ordered.drawn_width,
        "the same, in a width drawn each round from those within the budget",
        narrows=True,
    ),
    "rolling": SelectorEntry(
        lambda _: ordered.rolling_window, "as ordered, from a channel on that is the next one each round"
    ),
}
