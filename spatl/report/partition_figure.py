"""Picture of a partition: the examples of each class, or other kind, that each client has, and their splits."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spatl.errors import SpatlError
from spatl.report.figures import PALETTE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

SPLITS = ("train", "validation", "test")
_SHADES = ("#d6e6f2", PALETTE[0], "#001a2b")  # from few examples to many; none is white
_MANY_CLIENTS = 40  # beyond, the lines between cells would cover them, and not every id has room
_FEW = 16  # up to so many clients and classes, a cell has room for its number
_MANY_CLASSES = 20  # beyond, not every name has room
_UPRIGHT = 8  # up to so many owners' names have room beside each other
_LONG_NAME = 16  # characters; beyond, a class's name is cut


@dataclass(frozen=True, eq=False)
class PartitionCounts:
    """Counts of a partition, as it is shown.

    Attributes:
        title: What the partition is called.
        classes: The name of each of C classes, or of other kinds of examples.
        counts: `[K, C]`, int64: how many examples of each class each of K clients has.
        owners: The names of the K clients' owners; none where they have none.
        splits: `[K, 3]`, int64: how many examples of each of `SPLITS` each client has.
        sizes: `[K]`, int64: how many examples each client has; None where each is of one class.
        noun: What a class is called, and many of them.
    """

    title: str
    classes: Sequence[str]
    counts: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    splits: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    owners: Sequence[str] = ()
    sizes: np.ndarray[tuple[int], np.dtype[np.int64]] | None = None
    noun: tuple[str, str] = ("class", "classes")

    @property
    def totals(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Examples of each client, int64 `[K]`."""
        return self.counts.sum(axis=1) if self.sizes is None else self.sizes


def draw_partition(partition: PartitionCounts, path: Path) -> None:
    """Draw a partition as a PNG, 1400 pixels wide and higher the more classes there are.

    Args:
        partition: What to show.
        path: The file to write.

    Raises:
        SpatlError: matplotlib is not installed, or the file cannot be written.
    """
    height = min(max(0.36 * len(partition.classes), 2.4), 9.0)
    with new_figure(14, 3.4 + height) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, height])
        figure.suptitle(partition.title, x=0.01, ha="left", fontsize=16)
        _draw_sizes(above, partition)
        mesh = _draw_classes(below, partition)
        bar = figure.colorbar(
            mesh, ax=[above, below], pad=0.01, aspect=40, label=f"examples of the {partition.noun[0]}"
        )
        bar.outline.set_visible(False)
        try:
            with warnings.catch_warnings():  # a class may be called what the font cannot write; the table names it
                warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
                figure.savefig(path, format="png")
        except OSError as error:
            raise SpatlError(f"cannot write the picture {path}: {error.strerror}") from error


def _draw_sizes(axes: "Axes", partition: PartitionCounts) -> None:
    clients = np.arange(len(partition.splits))
    bottom = np.zeros(len(clients))
    for part, sizes, color in zip(SPLITS, partition.splits.T, PALETTE, strict=False):
        axes.bar(clients, sizes, bottom=bottom, width=0.8, color=color, label=part)
        bottom += sizes
    axes.set_ylim(0, 1.05 * max(float(bottom.max()), 1.0))
    axes.set(title="Examples per client", ylabel="examples")
    axes.grid(visible=False, axis="x")
    axes.tick_params(axis="x", length=0, labelbottom=False)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0)


def _draw_classes(axes: "Axes", partition: PartitionCounts) -> "QuadMesh":
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    counts = partition.counts.T  # [C, K]
    num_classes, num_clients = counts.shape
    most = max(int(counts.max()), 1)
    mesh = axes.pcolormesh(
        np.arange(num_clients + 1) - 0.5,
        np.arange(num_classes + 1) - 0.5,
        np.ma.masked_equal(counts, 0),
        cmap=LinearSegmentedColormap.from_list("counts", _SHADES),
        norm=PowerNorm(0.5, vmin=0, vmax=most),  # small counts are told apart, too
        edgecolors="white",
        linewidth=0.6 if max(num_clients, num_classes) <= _MANY_CLIENTS else 0,
    )
    if max(num_clients, num_classes) <= _FEW:
        for (row, client), count in np.ndenumerate(counts):
            color = "white" if count > 0.14 * most else "black"
            axes.text(client, row, f"{count:,}" if count else "", ha="center", va="center", color=color, fontsize=11)
    axes.set(title=f"Examples of each {partition.noun[0]}", xlabel="client")
    axes.set_ylabel(partition.noun[0], labelpad=10)
    axes.set(xlim=(-0.5, num_clients - 0.5), ylim=(num_classes - 0.5, -0.5))
    axes.grid(visible=False)
    axes.tick_params(length=0)
    ticks = _ticks(num_clients, _MANY_CLIENTS)
    if partition.owners:
        names = [f"{client} {_short(partition.owners[client])}" for client in ticks]
        axes.set_xticks(ticks, names, rotation=90 if len(ticks) > _UPRIGHT else 0)
    else:
        axes.set_xticks(ticks)
    rows = _ticks(num_classes, _MANY_CLASSES)
    axes.set_yticks(rows, [_short(partition.classes[row]) for row in rows])
    return mesh


def _ticks(number: int, many: int) -> list[int]:
    """Return all of `0..number - 1` if they are not too many, else multiples of 5, 10, 50, ..."""
    step = next(step for step in (1, 5, 10, 50, 100, 500, 1000, number) if number <= many * step)
    return list(range(0, number, step))


def _short(name: str) -> str:
    return name if len(name) <= _LONG_NAME else f"{name[: _LONG_NAME - 1]}\u2026"
