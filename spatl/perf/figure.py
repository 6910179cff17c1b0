"""Picture of what simulations take: updates beside the bare loop, federations by number of clients, large networks."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spatl.perf.parts import LOCAL_PARTS, OTHER, PARTS
from spatl.report.figures import INK, PALETTE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MORE: Final = ("#56b4e9", "#cc79a7", "#f0e442", "#882255", "#999933", "#44aa99", "#aa4499")


def draw_perf(found: Mapping[str, Any], path: Path) -> None:
    """Draw what `spatl perf` found as a PNG.

    Args:
        found: The content of `perf.json`.
        path: The file to write.

    Raises:
        SpatlError: matplotlib is not installed.
    """
    with new_figure(14, 6 if not found["sizes"] else 10) as figure:
        grid = figure.add_gridspec(2 if found["sizes"] else 1, 2, width_ratios=(3, 2))
        updates, clients = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
        if found["updates"]:
            _draw_updates(updates, found["updates"])
        if found["clients"]:
            _draw_clients(clients, found["clients"])
        for axes, rows in ((updates, found["updates"]), (clients, found["clients"])):
            axes.set_visible(bool(rows))
        if found["sizes"]:
            _draw_sizes(figure.add_subplot(grid[1, :]), found["sizes"])
        figure.savefig(path, format="png")


def _draw_updates(axes: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    """Bars of the parts of an update, in bare loops, so that the loop's own is a line at 1."""
    colors = cycle((*PALETTE, *_MORE))
    ends = [0.0] * len(rows)
    for part in (*PARTS, OTHER):
        shares = [row["parts_ms"][part] * _scale(row) for row in rows]
        axes.barh(range(len(rows)), shares, left=ends, color=next(colors), label=part)
        ends = [end + share for end, share in zip(ends, shares, strict=True)]
    axes.axvline(1, color=INK, linewidth=1.2)
    axes.set_yticks(range(len(rows)), [f"{row['model']}, {row['method']}" for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("CPU time of an update, in bare loops (the line)")
    axes.legend(fontsize=8, ncols=2, loc="lower right")


def _scale(row: Mapping[str, Any]) -> float:
    """Bare loops in a millisecond of the parts' own run, which is made as long as the others by the median ratio."""
    whole = sum(row["parts_ms"].values())
    return 1 / row["ratio"]["median"] / whole if whole else 0.0


def _draw_sizes(axes: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    """Bars of the parts of an update around its training, for each parameter."""
    colors = cycle((*PALETTE, *_MORE))
    ends = [0.0] * len(rows)
    for part in (*PARTS, OTHER):
        color = next(colors)
        if part in LOCAL_PARTS:
            continue
        shares = [row["parts_ns"][part] for row in rows]
        axes.barh(range(len(rows)), shares, left=ends, color=color, label=part)
        ends = [end + share for end, share in zip(ends, shares, strict=True)]
    axes.set_yticks(range(len(rows)), [f"{row['num_parameters'] / 1e6:.1f} M, {row['method']}" for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("CPU nanoseconds a parameter, around the training of an update")
    axes.legend(fontsize=8, ncols=2, loc="lower right")


def _draw_clients(axes: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    numbers = [row["num_clients"] for row in rows]
    for name, color in zip(("start", "round", "end"), PALETTE, strict=False):
        axes.plot(numbers, [max(row[f"{name}_seconds"], 1e-3) for row in rows], "o-", color=color, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("clients, of which one in a hundred takes part, ten at least")
    axes.set_ylabel("CPU seconds")
    axes.legend(fontsize=9)
