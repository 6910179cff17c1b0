"""Pictures of a benchmark: accuracy against bytes, rounds and seconds, loss, clients, and the parts of the bytes.

A row's curve is the mean over its seeds, round by round: of the accuracy, and of what it had cost by then. Where rows
are few, the area between the lowest and the highest seed is shaded; where accuracies come near 1, the axis gives
every halving of the errors the same room. Runs that stopped before the end are left out, and the legend says
so, unless all of a row's did.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from spatl.bench.ablations import AblationRow
from spatl.bench.costs import Point
from spatl.bench.results import Curve, PartsRow, reference_bytes
from spatl.bench.score import ACCURACY, Score
from spatl.bench.tables import factor_text
from spatl.report.figures import (
    INK,
    PALETTE,
    PART_COLORS,
    byte_axis,
    byte_label,
    figure_svg,
    legend_above,
    log_ticks,
    new_figure,
)
from spatl.runs.scores import named_score
from spatl.runs.text import human_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours without yellow, then again with other dashes: told apart by colour or by dash.
_BLUE, _ORANGE, _GREEN, _VERMILION, _GREY = PALETTE
_COLORS: Final = (_BLUE, _VERMILION, _GREEN, "#cc79a7", "#56b4e9", _ORANGE, _GREY)
_DASHES: Final = ("-", "--", ":")

STRETCHED: Final = "accuracy (fraction correct), axis stretched towards 1"
_MANY_ROWS = 6  # beyond, shaded areas would cover each other
_NEAR_ONE = 0.9  # accuracies above it differ by what is left to 1
_LEAST_ERROR = 0.005
_ACCURACIES = (0, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 1)

_FACTORS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_CLOSE_FACTORS = (0.65, 0.8, 1.25, 1.5, 3)  # as well, where there is room

Curves = Mapping[str, Sequence[Curve]]
"""The curves of the seeds by the row's title."""


def accuracy_svg(
    curves: Curves, *, against: str, targets: Sequence[tuple[float, bool]], alone: str | None, score: Score = ACCURACY
) -> str:
    """Draw accuracy against `"bytes"` (on a logarithmic axis), `"rounds"` or `"seconds"`.

    Args:
        curves: By row.
        against: What is on the horizontal axis: a field of `Point`.
        targets: Accuracies to mark, each with whether it needs a federation.
        alone: The row that trains without a federation: against bytes, which it does not need, it is a level line.
        score: What is drawn, an accuracy or another task's.

    Returns:
        One `<svg>` element, in the colours of the page around it.
    """
    return figure_svg(
        lambda axes: draw_accuracy(axes, curves, against=against, targets=targets, alone=alone, score=score),
        width=12, height=6, legend_columns=4,
    )  # fmt: skip


def draw_curves(
    curves: Curves, path: Path, *, title: str, targets: Sequence[tuple[float, bool]], alone: str | None,
    score: Score = ACCURACY,
) -> None:  # fmt: skip
    """Draw accuracy against bytes and against rounds, side by side, as a PNG (arguments as in `accuracy_svg`)."""
    with new_figure(16, 7) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, against in zip(panels, ("bytes", "rounds"), strict=True):
            draw_accuracy(axes, curves, against=against, targets=targets, alone=alone, score=score)
        legend_above(figure, panels[1], columns=5, title=title, fontsize=11)
        figure.savefig(path, format="png")


def draw_accuracy(
    axes: "Axes", curves: Curves, *, against: str, targets: Sequence[tuple[float, bool]], alone: str | None,
    score: Score = ACCURACY,
) -> None:  # fmt: skip
    """Draw the panel of `accuracy_svg` (arguments as there)."""
    shown: list[float] = []
    best = 0.0
    shaded = False
    for (title, own), style in zip(curves.items(), _styles(), strict=False):
        drawn = [curve for curve in own if curve.clients] or own
        places, low, middle, high = _means(drawn, against)
        if not places:
            continue
        label = title if len(drawn) == len(own) else f"{title} ({len(drawn)} of {len(own)} seeds)"
        if against == "bytes" and title == alone:
            axes.axhline(middle[-1], label=f"{label}, at the end", linewidth=2, **style)
            continue
        shown += [place for place in places if place > 0]
        if len(curves) <= _MANY_ROWS:
            axes.fill_between(places, low, high, color=style["color"], alpha=0.12, linewidth=0)
            shaded = shaded or len(drawn) > 1
        axes.plot(places, middle, label=label, linewidth=2, **style)
        best = max(best, *middle)
    for target, needs_federation in targets:
        axes.axhline(target, color=INK, linewidth=1, linestyle=(0, (1, 3)), alpha=0.9 if needs_federation else 0.3)
    # What is no row's: drawn nowhere, for the legend alone.
    if targets:
        axes.plot([], [], color=INK, linewidth=1, linestyle=(0, (1, 3)), label="targets")
    if shaded:
        axes.fill_between([], [], [], color=_GREY, alpha=0.3, linewidth=0, label="lowest to highest seed")
    if against == "bytes":
        byte_axis(axes, shown)
    if against == "rounds":
        axes.locator_params(axis="x", integer=True)
    axes.set(xlabel=_AXIS[against], ylabel=named_score(score.metric))
    if not score.is_share:
        return
    if best > _NEAR_ONE:
        axes.set_yscale("function", functions=(_stretched, _unstretched))
        axes.set_yticks(_ACCURACIES, [f"{accuracy:g}" for accuracy in _ACCURACIES])
        axes.set_ylim(0.0, 1.0)
        axes.set_ylabel(STRETCHED if score.is_accuracy else f"{score.metric}, axis stretched towards 1")
        return
    low_end, high_end = axes.get_ylim()
    axes.set_ylim(max(low_end, 0.0), min(high_end, 1.01))


def stretches(curves: Curves, score: Score = ACCURACY) -> bool:
    """Return whether the axis of these curves' shares is stretched: one of their means comes near 1."""
    return score.is_share and any(
        accuracy > _NEAR_ONE
        for own in curves.values()
        for accuracy in _means([curve for curve in own if curve.clients] or own, "rounds")[2]
    )


def loss_svg(curves: Curves) -> str:
    """Draw the mean test loss of every row against rounds of training; `<svg>` as above, empty if none was measured."""
    if not mean_losses(curves):
        return ""

    def draw(axes: "Axes") -> None:
        shown = mean_losses(curves)
        for title, (rounds, losses, style) in shown.items():
            axes.plot(rounds, losses, label=title, linewidth=2, **style)
        axes.locator_params(axis="x", integer=True)
        axes.set(xlabel=_AXIS["rounds"], ylabel="loss")
        everything = [loss for _, losses, _ in shown.values() for loss in losses]
        if min(everything) > 0:
            axes.set_yscale("log")
            axes.minorticks_off()
            low, high = min(everything) / 1.2, max(everything) * 1.2
            axes.set_ylim(low, high)
            ticks = log_ticks(low, high)
            axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.set_ylabel("loss (logarithmic)")

    return figure_svg(draw, width=12, height=5, legend_columns=4)


def mean_losses(curves: Curves) -> "dict[str, tuple[list[int], list[float], dict[str, Any]]]":
    """Return rounds, mean losses over the seeds and style by row, of the rows that measured any."""
    found = {}
    for (title, own), style in zip(curves.items(), _styles(), strict=False):
        drawn = [curve.points for curve in own if curve.clients] or [curve.points for curve in own if curve.points]
        rounds, losses = [], []
        for column in zip(*drawn, strict=False):
            measured = [point.loss for point in column if point.loss is not None]
            if len(measured) == len(column):
                rounds.append(column[0].rounds)
                losses.append(math.fsum(measured) / len(measured))
        if losses:
            found[title] = (rounds, losses, style)
    return found


def _stretched(accuracy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the place of an accuracy on an axis on which every halving of the errors takes the same room."""
    return -np.log(_LEAST_ERROR + 1 - np.minimum(accuracy, 1))


def _unstretched(place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the accuracy at a place: the inverse of `_stretched`."""
    return _LEAST_ERROR + 1 - np.exp(-np.asarray(place))


def clients_svg(curves: Curves, score: Score = ACCURACY) -> str:
    """Draw every client's final accuracy, or score, all seeds together, one line of boxes per row; `<svg>` as above."""
    shown = {title: [a for curve in own for a in curve.clients.values()] for title, own in curves.items()}
    shown = {title: accuracies for title, accuracies in shown.items() if accuracies}

    def draw(axes: "Axes") -> None:
        titles = list(shown)[::-1]
        styles = dict(zip(curves, _styles(), strict=False))
        for place, title in enumerate(titles):
            color = styles[title]["color"]
            box: dict[str, Any] = {"color": color, "linewidth": 1.5}
            axes.boxplot(
                [shown[title]], positions=[place], orientation="horizontal", widths=0.6, whis=(0, 100),
                manage_ticks=False,
                boxprops=box, whiskerprops=box, capprops=box, medianprops={"color": INK, "linewidth": 2},
            )  # fmt: skip
            mean = math.fsum(shown[title]) / len(shown[title])
            axes.plot([mean], [place], marker="D", markersize=6, color=color, markeredgecolor=INK, linestyle="")
        axes.set_yticks(range(len(titles)), titles)
        axes.set_ylim(-0.6, len(titles) - 0.4)
        axes.set(
            xlabel=f"{score.metric} of a client after the last round (box: quartiles, line: median, diamond: mean)"
        )

    return figure_svg(draw, width=12, height=1.2 + 0.42 * max(1, len(shown)))


def parts_svg(table: Sequence[PartsRow]) -> str:
    """Draw the parts of every row's bytes (see `draw_parts`); `<svg>` as above."""
    return figure_svg(lambda axes: draw_parts(axes, table), width=12, height=_height(table), legend_columns=4)


def draw_bytes(table: Sequence[PartsRow], path: Path) -> None:
    """Draw the same as a PNG."""
    with new_figure(14, _height(table)) as figure:
        axes = figure.subplots()
        draw_parts(axes, table)
        legend_above(figure, axes, columns=4)
        figure.savefig(path, format="png")


def draw_parts(axes: "Axes", table: Sequence[PartsRow]) -> None:
    """Draw a bar of stacked parts per row, the downlink to the left and the uplink to the right of the same zero.

    The unit is what FedAvg sends in both directions, if it is in the table and ended; otherwise it is bytes.
    """
    rows = table[::-1]
    whole = reference_bytes(table)
    share = _percent if whole else byte_label
    for sign, way in ((1, "uplink"), (-1, "downlink")):
        ends = [0.0] * len(rows)
        for part, color in PART_COLORS.items():
            added = [sign * getattr(row, way).get(part, 0.0) / (whole or 1) for row in rows]
            axes.barh(range(len(rows)), added, left=ends, color=color, height=0.7, label=part if sign > 0 else None)
            ends = [before + more for before, more in zip(ends, added, strict=True)]
        for place, end in enumerate(ends):
            if rows[place].total:
                _note(axes, share(end, 0), end, place, right=sign > 0)
    for place, row in enumerate(rows):
        if not row.total:
            _note(axes, "no run ended", 0, place)
    axes.axvline(0, color=INK, linewidth=1)
    axes.use_sticky_edges = False  # a part of no bytes would end the panel at the bar
    axes.margins(x=0.08)
    axes.set_yticks(range(len(rows)), [row.title for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(share)
    unit = "share of all bytes of FedAvg" if whole else "bytes of a run"
    axes.set(xlabel=f"← downlink     {unit}     uplink →")


def part_words(table: Sequence[PartsRow]) -> str:
    """Describe the picture of the parts in words, for readers who cannot see it."""
    whole = reference_bytes(table)
    sentences = []
    for row in table:
        if row.total:
            up, down = (math.fsum(parts.values()) for parts in (row.uplink, row.downlink))
            share = f", {_percent(row.total / whole)} of FedAvg" if whole else ""
            amounts = f"{human_bytes(round(up))} up and {human_bytes(round(down))} down"
            sentences.append(f"{row.title} sends {amounts}{share}")
    return "; ".join(sentences) + "." if sentences else "No run ended."


def factors_svg(table: Sequence[AblationRow]) -> str:
    """Draw the factor of every idea (see `draw_factors`); `<svg>` as above."""
    return figure_svg(lambda axes: draw_factors(axes, table), width=12, height=_height(table[1:]))


def draw_factors(axes: "Axes", table: Sequence[AblationRow]) -> None:
    """Draw a bar from 1 to the factor of each row but the full one, on a logarithmic axis, with its interval as a line.

    Where no seed has a factor the bar is pale and ends at the bound. Intervals may run beyond the axis.
    """
    rows = table[:0:-1]
    ends = [_end_of_bar(row) for row in rows]
    for place, (row, end) in enumerate(zip(rows, ends, strict=True)):
        color = _BLUE if end >= 1 else _VERMILION
        axes.barh(place, end - 1, left=1, height=0.6, color=color, alpha=1 if row.factor else 0.35)
        if row.factor and row.factor.low is not None and row.factor.high is not None:
            axes.plot([row.factor.low, row.factor.high], [place, place], color=INK, linewidth=1.5)
    axes.set_xscale("log")
    low, high = min([1, *ends]) / 1.25, max([1, *ends]) * 1.25
    axes.set_xlim(low, high)
    axes.minorticks_off()
    ticks = [tick for tick in (*_FACTORS, *(_CLOSE_FACTORS if high / low < 8 else ())) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_yticks(range(len(rows)), [f"without {row.without}\n{factor_text(row)}" for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="bytes without the idea over bytes of the full method (logarithmic)")


def _end_of_bar(row: AblationRow) -> float:
    """Return the factor, or a bound of it that tells the side of 1, or 1."""
    if row.factor:
        return row.factor.value
    if row.at_least and not row.at_most:
        return max(1.0, min(row.at_least))
    if row.at_most and not row.at_least:
        return min(1.0, max(row.at_most))
    return 1.0


def _percent(share: float, _position: float = 0) -> str:
    return f"{100 * abs(share):.0f} %"


def _note(axes: "Axes", text: str, place: float, line: int, *, right: bool = True) -> None:
    """Write beside the end of a bar."""
    offset, side = (4, "left") if right else (-4, "right")
    axes.annotate(
        text, (place, line), xytext=(offset, 0), textcoords="offset points", ha=side, va="center", fontsize=10
    )


def _height(rows: Sequence[object]) -> float:
    return 1.6 + 0.42 * max(1, len(rows))


_AXIS: Final = {
    "bytes": "bytes, up and down together (logarithmic)",
    "rounds": "rounds of training",
    "seconds": "seconds of simulation, clients one after another",
}
_COST: Final[Mapping[str, Callable[[Point], float]]] = {
    "bytes": lambda point: float(point.bytes),
    "rounds": lambda point: float(point.rounds),
    "seconds": lambda point: point.seconds,
}


def axis_words(curves: Curves, score: Score = ACCURACY) -> str:
    """Describe the axis of accuracies, or scores, and the shades in words."""
    axis = (
        f"The {score.metric} axis is stretched towards 1: every halving of the errors takes the same room."
        if stretches(curves, score)
        else f"The {score.metric} axis shows the range that occurs{', not all of 0 to 1' if score.is_share else ''}."
    )
    shades = len(curves) <= _MANY_ROWS and any(len(own) > 1 for own in curves.values())
    return axis + (" Shades reach from the lowest to the highest seed." if shades else "")


def curve_words(curves: Curves) -> str:
    """Describe the curves in words, for readers who cannot see them."""
    sentences = []
    for title, own in curves.items():
        ends = [curve.points[-1] for curve in own if curve.points]
        if ends:
            accuracy = math.fsum(point.accuracy for point in ends) / len(ends)
            cost = round(math.fsum(point.bytes for point in ends) / len(ends))
            sentences.append(f"{title} ends at {accuracy:.3f} after {human_bytes(cost)}")
    return "; ".join(sentences) + "." if sentences else "No run wrote a round."


def _styles() -> "cycle[dict[str, Any]]":
    return cycle({"color": color, "linestyle": dashes} for dashes in _DASHES for color in _COLORS)


def _means(own: Sequence[Curve], against: str) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return mean cost, and lowest, mean and highest accuracy over the seeds, for as many rounds as every seed has."""
    drawn = [curve.points for curve in own if curve.points]
    columns = list(zip(*drawn, strict=False))
    places = [math.fsum(map(_COST[against], column)) / len(column) for column in columns]
    low = [min(point.accuracy for point in column) for column in columns]
    middle = [math.fsum(point.accuracy for point in column) / len(column) for column in columns]
    high = [max(point.accuracy for point in column) for column in columns]
    return places, low, middle, high
