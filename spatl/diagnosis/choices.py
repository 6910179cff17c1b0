"""Choices of a run's clients: which share of each group's channels was sent, over the rounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from spatl.runs.files import SELECTIONS, SUMMARY
from spatl.runs.marks import check_finished
from spatl.runs.records import mean, read_lines

_MOST_COLUMNS: Final = 8


@dataclass(frozen=True)
class KeptGroup:
    """Channel group, with the shares of it that were sent.

    Attributes:
        name: The first layer that owns entries of it.
        num_channels: Of the group.
        kept: Share that was sent, mean over clients and rounds, one for each of the columns.
    """

    name: str
    num_channels: int
    kept: tuple[float | None, ...]


@dataclass(frozen=True)
class Choices:
    """Shares of the channels that clients sent.

    Attributes:
        columns: Rounds that are put together: first and last of each.
        groups: In the order of the encoder's layout.
        num_clients: Clients whose choices these are.
    """

    columns: tuple[tuple[int, int], ...]
    groups: tuple[KeptGroup, ...]
    num_clients: int


def read_choices(run: Path, *, client: int | None = None) -> Choices | None:
    """Return what a run's clients sent of each channel group; None where the run has recorded nothing of it.

    Args:
        run: Its directory.
        client: Whose choices; all clients' together if not given.

    Raises:
        DamagedState: The record of a run that is over is not as it was written.
    """
    rows = read_lines(run / SELECTIONS)
    if (run / SUMMARY).exists():
        check_finished(run, (SELECTIONS,))
    kept = [
        (row["round"], [counts for name, counts in row["kept"].items() if client in (None, int(name))]) for row in rows
    ]
    kept = [(number, counts) for number, counts in kept if counts]
    if not kept:
        return None
    clients = {name for row in rows for name in row["kept"] if client in (None, int(name))}
    columns = _columns([number for number, _ in kept])
    sizes: Sequence[int] = rows[0]["sizes"]
    groups = tuple(
        KeptGroup(name, sizes[place], tuple(_share(kept, place, sizes[place], column) for column in columns))
        for place, name in enumerate(rows[0]["groups"])
    )
    return Choices(columns, groups, len(clients))


def _columns(rounds: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return rounds in order as at most so many stretches, as even as can be."""
    number = min(_MOST_COLUMNS, len(rounds))
    starts = [len(rounds) * place // number for place in range(number + 1)]
    return tuple((rounds[first], rounds[last - 1]) for first, last in pairwise(starts))


def _share(
    kept: Sequence[tuple[int, Sequence[Sequence[int]]]], place: int, size: int, column: tuple[int, int]
) -> float | None:
    first, last = column
    return mean(counts[place] / size for number, own in kept if first <= number <= last for counts in own)
