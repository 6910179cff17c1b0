"""Curves of a run, drawn as `curves.png` or as an SVG for the report.

What federated learning is bought for is accuracy and what it costs is bytes, so the panels show accuracy over rounds,
accuracy over bytes, the loss, the bytes themselves and how the clients share the result. Figures are matplotlib objects
of their own: pyplot's global state is never touched, and matplotlib (an optional extra) is imported when one is drawn.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO, StringIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatl.disk.writing import replace_file
from spatl.errors import SpatlError
from spatl.report.result import RunResult
from spatl.runs.records import bytes_on_arrival, is_number
from spatl.runs.scores import SHARES, metric_of, named_score, score_in, worst_in
from spatl.runs.text import capitalised, human_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# The palette of Okabe and Ito, told apart with any kind of colour vision and legible on white and on black.
PALETTE = _BLUE, _ORANGE, _GREEN, _VERMILION, _GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#999999"

PART_COLORS = {"values": _BLUE, "indices": _ORANGE, "control": _GREEN, "other": _GREY}
"""What bytes are, in the order in which they are stacked, and the colour of each."""

INK = "#1b1f24"
"""Text and lines; an SVG replaces it by the colour of the page around it."""

_STYLE: Any = {  # matplotlib's type for it lists every key there is, in that version
    "font.size": 12,
    "figure.constrained_layout.h_pad": 0.12,
    "figure.constrained_layout.w_pad": 0.12,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 13.5,
    "axes.titleweight": "bold",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.title_fontsize": 16,
    "svg.hashsalt": "spatl",
    "svg.fonttype": "path",
}

_SVG: Any = {"format": "svg", "transparent": True, "metadata": dict.fromkeys(("Creator", "Date", "Format", "Type"))}

_MANY_ROUNDS = 60  # beyond, markers shrink to the width of the line

_MANY_CLIENTS = 30  # beyond, client ids under the bars would overlap


def draw_curves(result: RunResult, path: Path) -> None:
    """Draw the curves of a run as a PNG of 1400 x 1300 pixels.

    Args:
        result: The run.
        path: The file to write, `curves.png` by convention.

    Raises:
        SpatlError: matplotlib is not installed.
    """
    file = BytesIO()
    _save(result, file, format="png")
    replace_file(path, file.getvalue())


def curves_svg(result: RunResult) -> str:
    """Draw the same curves as one `<svg>` element: no prolog, nothing outside it, the same text for the same run.

    Text and axes take the colour of the page around the element, so the picture is at home on light and dark pages.

    Raises:
        SpatlError: matplotlib is not installed.
    """
    file = StringIO()
    _save(result, file, **_SVG)
    return _svg_element(file)


def figure_svg(draw: "Callable[[Axes], None]", *, width: float, height: float, legend_columns: int = 0) -> str:
    """Draw one panel as an `<svg>` element like those of `curves_svg`.

    Args:
        draw: Draws on the axes.
        width: In hundreds of pixels.
        height: In hundreds of pixels.
        legend_columns: Columns of a legend above the panel, fewer where they would not fit; 0 for none.

    Raises:
        SpatlError: matplotlib is not installed.
    """
    file = StringIO()
    with new_figure(width, height) as figure:
        axes = figure.subplots()
        draw(axes)
        if legend_columns:
            legend_above(figure, axes, columns=legend_columns, fontsize=11)
        figure.savefig(file, **_SVG)
    return _svg_element(file)


def legend_above(figure: "Figure", axes: "Axes", *, columns: int, **options: Any) -> None:
    """Put the legend of a panel above all panels, in so many columns, or in as many of them as the figure is wide for.

    Args:
        figure: What the panel is in.
        axes: The panel.
        columns: At most.
        options: As of `Figure.legend`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    handles, labels = axes.get_legend_handles_labels()
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]  # matplotlib has no types for it
    for number in range(columns, 0, -1):
        legend = figure.legend(handles, labels, loc="outside upper center", ncols=number, **options)
        if number == 1 or legend.get_window_extent(renderer).width <= figure.bbox.width:
            break
        legend.remove()


def _svg_element(file: StringIO) -> str:
    text = file.getvalue()
    element = re.sub(r"<!--.*?-->\n?", "", text[text.index("<svg") :], flags=re.DOTALL)
    return element.replace(INK, "currentColor")


def run_title(summary: Mapping[str, Any]) -> str:
    """Return the title of a run: its method and its data set, if that is known."""
    method = str(summary.get("title") or summary["method"])
    return f"{method} on {summary['data']}" if summary.get("data") else method


def final_accuracies(result: RunResult) -> dict[int, float]:
    """Return each client's accuracy with the encoder after the last round, or score of another task.

    Clients that reported none are left out.
    """
    found = ((row["client"], score_in(row, "final_")) for row in result.clients)
    return {client: score for client, score in found if score is not None and is_number(score)}


@contextmanager
def new_figure(width: float, height: float) -> "Iterator[Figure]":
    """Make a figure in the product's style, its size in hundreds of pixels; its user saves it before the block ends.

    Raises:
        SpatlError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SpatlError("drawing needs matplotlib, which is not installed: pip install 'spatl[simulation]'") from error
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), dpi=100, layout="constrained")


def _save(result: RunResult, target: BytesIO | StringIO, **options: Any) -> None:
    with new_figure(14, 13) as figure:
        axes = figure.subplot_mosaic([["rounds", "bytes"], ["loss", "parts"], ["clients", "clients"]])
        _draw_accuracy_per_round(axes["rounds"], result)
        _draw_accuracy_per_byte(axes["bytes"], result)
        draw_loss_per_round(axes["loss"], result)
        _draw_bytes_per_round(axes["parts"], result)
        _draw_clients(axes["clients"], result)
        # One legend above both panels of accuracy; a title of the figure's own would be put in the same place.
        columns = max(len(axes["rounds"].get_legend_handles_labels()[0]), 1)
        legend_above(figure, axes["rounds"], columns=columns, title=_heading(result.summary))
        figure.savefig(target, **options)


def _heading(summary: Mapping[str, Any]) -> str:
    clients = f"{summary['num_clients']} clients, " if summary.get("num_clients") else ""
    return f"{run_title(summary)}: {clients}seed {summary['seed']}"


def _draw_accuracy_per_round(axes: "Axes", result: RunResult) -> None:
    rounds = [row["round"] for row in result.history]
    _draw_accuracy(axes, result, rounds, after=rounds[-1] + 1 if rounds else 1)
    _set_rounds(axes, rounds)
    axes.set_title(f"{_metric(result)} per round, on arrival")


def _draw_accuracy_per_byte(axes: "Axes", result: RunResult) -> None:
    total = sum(row["uplink_bytes"] + row["downlink_bytes"] for row in result.history)
    # A logarithmic axis has no place for an encoder that cost nothing.
    costs = [cost if cost > 0 else math.nan for cost in bytes_on_arrival(result.history)]
    _draw_accuracy(axes, result, costs, after=total if total > 0 else math.nan)
    axes.set(
        title=f"{_metric(result)} against all bytes sent so far", xlabel="bytes, up and down together (logarithmic)"
    )
    byte_axis(axes, [cost for cost in (*costs, total) if cost > 0])


def byte_axis(axes: "Axes", shown: Sequence[float]) -> None:
    """Give a panel a logarithmic horizontal axis of bytes with room for the numbers shown, which are positive."""
    if shown:
        axes.set_xscale("log")
        axes.minorticks_off()
        low, high = min(shown) / 1.3, max(shown) * 1.3
        widen = max(1.0, math.sqrt(10 * low / high))  # every decade has three ticks
        low, high = low / widen, high * widen
        axes.set_xlim(low, high)
        axes.set_xticks(log_ticks(low, high))
    axes.xaxis.set_major_formatter(byte_label)


def _draw_accuracy(axes: "Axes", result: RunResult, places: Sequence[float], *, after: float) -> None:
    """Draw the mean and the worst accuracy of the rounds at `places`, and those of the finished run at `after`."""
    history = result.history
    marker_size = 4 if len(history) <= _MANY_ROUNDS else 2
    lines = (
        (score_in, "mean of the round's clients", _BLUE, 2.0, "after the last round, all clients", 9),
        (worst_in, "worst of them", _VERMILION, 1.0, "worst of all clients", 6),
    )
    shown = False
    for score, label, color, width, final_label, final_size in lines:
        values = [_number(score(row)) for row in history]
        if not all(map(math.isnan, values)):
            axes.plot(places, values, color=color, linewidth=width, marker="o", markersize=marker_size, label=label)
            shown = True
        final = _number(score(history[-1], "final_")) if history else math.nan
        if not math.isnan(final):
            axes.plot([after], [final], color=color, linestyle="", marker="D", markersize=final_size, label=final_label)
            shown = True
    alone, metric = _number(score_in(result.alone)) if result.alone else math.nan, metric_of(result.summary)
    if not math.isnan(alone):
        axes.axhline(alone, color=INK, linewidth=1.5, linestyle="--", label="training alone")
        shown = True
    if shown:
        low, high = axes.get_ylim()
        if metric in SHARES:
            axes.set_ylim(max(low, -0.02), min(high, 1.02))
    else:
        _say(axes, f"no {metric} was reported")
    axes.set_ylabel(named_score(metric))


def draw_loss_per_round(axes: "Axes", result: RunResult) -> None:
    """Draw the loss on the clients' test splits on arrival and at the end, and that of their training."""
    rounds = [row["round"] for row in result.history]
    shown = False
    for key, label, color in (("loss", "test, on arrival", _BLUE), ("train_loss", "training", _GREEN)):
        values = [_number(row.get(key)) for row in result.history]
        if not all(map(math.isnan, values)):
            axes.plot(rounds, values, color=color, linewidth=2, label=label)
            shown = True
    final = _number(result.history[-1].get("final_loss")) if result.history else math.nan
    if not math.isnan(final):
        axes.plot(
            [rounds[-1] + 1], [final], color=_BLUE, linestyle="", marker="D", markersize=9, label="test, at the end"
        )
        shown = True
    if shown:
        axes.legend(loc="upper right")
    else:
        _say(axes, "no loss was reported")
    _set_rounds(axes, rounds)
    axes.set(
        title="Loss per round, mean of its clients",
        ylabel="cross-entropy" if metric_of(result.summary) == "accuracy" else "loss",
    )


def _draw_bytes_per_round(axes: "Axes", result: RunResult) -> None:
    rounds = [row["round"] for row in result.history]
    edges = [number - 0.5 for number in (*rounds, rounds[-1] + 1 if rounds else 1)]
    heights = {"uplink": [0] * len(rounds), "downlink": [0] * len(rounds)}
    signs = {"uplink": 1, "downlink": -1}
    for part, color in PART_COLORS.items():
        label: str | None = part
        for direction, sign in signs.items():
            added = [row[direction].get(part, 0) for row in result.history]
            if not any(added):
                continue
            bottom = heights[direction]
            heights[direction] = [below + more for below, more in zip(bottom, added, strict=True)]
            axes.stairs(
                [sign * height for height in heights[direction]],
                edges,
                baseline=[sign * height for height in bottom],
                fill=True,
                color=color,
                label=label,
            )
            label = None  # one entry in the legend for both directions
    highest, lowest = (max(heights[direction], default=0) for direction in signs)
    span = highest + lowest
    if span:
        axes.set_ylim(-1.05 * lowest if lowest else 0, highest + 0.2 * span)  # room for the legend
        axes.legend(loc="upper center", ncols=len(PART_COLORS))
    else:
        _say(axes, "no bytes were sent")
    axes.axhline(0, color=INK, linewidth=1)
    _set_rounds(axes, rounds)
    axes.locator_params(axis="y", steps=[1, 2, 5, 10])
    axes.yaxis.set_major_formatter(byte_label)
    axes.set(title="Bytes per round, by what they are", ylabel="← downlink     bytes     uplink →")


def _draw_clients(axes: "Axes", result: RunResult) -> None:
    accuracies = final_accuracies(result)
    order = sorted(accuracies, key=lambda client: (accuracies[client], client))
    places = range(len(order))
    axes.bar(places, [accuracies[client] for client in order], color=_BLUE, label="in the federation")
    known = (result.alone or {}).get("clients") or {}
    alone = [_number(known.get(str(client))) for client in order]
    if not all(map(math.isnan, alone)):
        size = 6 if len(order) <= _MANY_CLIENTS else 4
        axes.plot(
            places, alone, color=_ORANGE, markeredgecolor=INK, marker="o", markersize=size, linestyle="", label="alone"
        )
        axes.legend(loc="upper center", ncols=2, reverse=True)
    metric = metric_of(result.summary)
    if metric in SHARES:
        axes.set_ylim(0, 1.18)  # room for the legend
        axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.grid(visible=False, axis="x")
    if len(order) <= _MANY_CLIENTS:
        axes.set_xticks(places, [str(client) for client in order])
    else:
        axes.set_xticks([])
    if not order:
        _say(axes, "no client was evaluated after the last round")
    axes.set(
        title=f"{_metric(result)} per client after the last round",
        xlabel=f"client, sorted by {metric}" if len(order) <= _MANY_CLIENTS else f"{len(order)} clients, sorted",
        ylabel=named_score(metric),
    )


def _metric(result: RunResult) -> str:
    """Return what the score is called at the beginning of a title."""
    return capitalised(metric_of(result.summary))


def _set_rounds(axes: "Axes", rounds: Sequence[int]) -> None:
    """Give the panels over rounds the same axis, with a place for the point after the last round."""
    axes.set_xlabel("round")
    if rounds:
        margin = 0.6 + 0.02 * len(rounds)
        axes.set_xlim(rounds[0] - margin, rounds[-1] + 1 + margin)
        axes.set_xticks(_round_ticks(rounds[0], rounds[-1]))


def _say(axes: "Axes", text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center")


def _round_ticks(first: int, last: int) -> list[int]:
    """Return multiples of 1, 2, 5, 10, ... in `first..last`, about ten of them."""
    steps = (digit * 10**exponent for exponent in count() for digit in (1, 2, 5))
    step = next(step for step in steps if last - first <= 10 * step)
    return [number for number in range(first, last + 1) if number % step == 0]


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers in `low..high`: three per decade while there is room for their labels, then one."""
    digits = (1, 2, 5) if high / low < 400 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    ticks = [digit * 10.0**exponent for exponent in exponents for digit in digits]
    return [tick for tick in ticks if low <= tick <= high]


def byte_label(value: float, _position: float) -> str:
    """Return the label of a tick on an axis of bytes that grow from 0 to both sides."""
    return human_bytes(round(abs(value))).replace(".0 ", " ")


def _number(value: Any) -> float:
    return float(value) if is_number(value) else math.nan
