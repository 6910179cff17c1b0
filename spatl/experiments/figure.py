"""Picture of the experiments: a panel for each quantity, bars for each way, with errors over the examples."""

import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Final

from spatl.experiments.claims import CLAIM_TABLE
from spatl.experiments.measures import Row
from spatl.experiments.run import Outcome, conditions, quantities, ways
from spatl.report.figures import INK, PALETTE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _ORANGE, _GREEN, _VERMILION, _GREY = PALETTE
_COLORS: Final = {
    "z": _BLUE, "salient filters": _BLUE, "gradient x weight": _VERMILION, "|gradient|": _GREEN,
    "plain gradient": _GREEN, "random": _GREY, "random, same layers": "#555555", "least z": "#cc79a7",
    "all filters": _ORANGE,
}  # fmt: skip
_OTHERS: Final = ("#56b4e9", "#cc79a7", _ORANGE, INK)
_COLUMNS = 2


def draw_outcome(outcome: Outcome, path: Path, title: str) -> None:
    """Draw an outcome as a PNG.

    Args:
        outcome: The outcome.
        path: The file to write.
        title: Above it all.

    Raises:
        SpatlError: matplotlib is not installed.
    """
    panels = [
        (claim, quantity, [row for row in outcome.of(claim) if row.quantity == quantity])
        for claim in CLAIM_TABLE
        for quantity in quantities(outcome.of(claim))
    ]
    height = math.ceil(len(panels) / _COLUMNS)
    with new_figure(14, 4.2 * height + 0.6) as figure:
        figure.suptitle(title)
        grid = figure.subplots(height, _COLUMNS, squeeze=False).flatten()
        for axes, (claim, quantity, rows) in zip(grid, panels, strict=False):
            _draw(axes, rows)
            axes.set_title(f"{claim}: {quantity}")
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        figure.savefig(path, format="png")


def _draw(axes: "Axes", rows: Sequence[Row]) -> None:
    settings = conditions(rows)
    of_way = {way: {row.setting: row for row in rows if row.way == way} for way in ways(rows)}
    width = 0.8 / len(of_way)
    others = cycle(_OTHERS)
    for place, (way, own) in enumerate(of_way.items()):
        color = _COLORS.get(way) or next(others)
        shown = [own[setting] for setting in settings]
        places = [number + (place + 0.5) * width - 0.4 for number in range(len(settings))]
        errors = [row.gain_error or 0.0 for row in shown]
        axes.bar(places, [row.mean for row in shown], width, yerr=errors, color=color, label=way, ecolor=INK)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xticks(range(len(settings)), settings)
    axes.grid(visible=False, axis="x")
    axes.legend(fontsize=9, ncols=2)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.35 * (high - low))  # room for the legend
