"""Targets that stand in columns of a table."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spatl.data.brought import targets_of
from spatl.data.cells import Cells
from spatl.data.labels import class_labels, listed, named_labels
from spatl.errors import DataError
from spatl.tasks.targets import TaskName


@dataclass(frozen=True, eq=False)
class ColumnTargets:
    """Targets of rows, as their task has them.

    Attributes:
        values: `[N]` or `[N, K]`.
        names: The K outputs' names.
        notes: What a user should know of how they were read, a line each.
    """

    values: Tensor
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def targets_in(cells: Cells, names: list[str], task: TaskName) -> ColumnTargets:
    """Return the targets in columns of a table.

    Args:
        cells: The table.
        names: The columns: of a classification one, whose classes keep the order in which the library `datasets` names
            them; of several labels or values one each, or one with a list of them in each row.
        task: What they are for.

    Raises:
        DataError: A cell is no target of the task, or the task has none in a table.
    """
    if task == "classification":
        if len(names) > 1:
            raise DataError(
                f"table: a classification has one target, got {listed(names)}; for several labels of 0 and 1 set "
                "task.name: multi-label"
            )
        values = cells.texts(names[0])
        if named := cells.classes.get(names[0]):
            labels = named_labels("table", np.array(values), named)
            return ColumnTargets(torch.from_numpy(labels.numbers), labels.names)
        numeric = all(_is_number(value) for value in values)
        labels = class_labels("table", np.array(values, dtype=np.float64) if numeric else np.array(values))
        return ColumnTargets(torch.from_numpy(labels.numbers), labels.names, labels.notes)
    if task not in ("regression", "multi-label"):
        raise DataError(
            f"table: a table has no targets for the task {task}: take classification or regression, or name a column "
            "of lists of tokens in data.options.sequence"
        )
    if len(names) == 1 and isinstance(cells.values(names[0])[0], list):
        return _lists(cells, names[0], task)
    advice = f", the targets of {task}"
    found = np.stack([cells.numbers(name, advice=advice) for name in names], axis=1).astype(np.float32)
    for column, name in enumerate(names if task == "multi-label" else ()):
        if len(wrong := np.flatnonzero(~np.isin(found[:, column], (0, 1)))):
            raise cells.misfit(name, "must hold 0 or 1", wrong.tolist(), found[:, column].tolist())
    return ColumnTargets(torch.from_numpy(found), tuple(names))


def _lists(cells: Cells, name: str, task: TaskName) -> ColumnTargets:
    """Return targets of which each row has a list."""
    rows = cells.values(name)
    number = len(rows[0])
    if wrong := [row for row, cell in enumerate(rows) if not isinstance(cell, list) or len(cell) != number]:
        raise cells.misfit(name, f"must hold a list of {number} in each row, as in the first", wrong, rows)
    try:
        values = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"table: the column {name!r} must hold lists of numbers, the targets of {task}") from error
    found, names, notes = targets_of(values, task, name="table", where=f"table: {name!r}", inputs=torch.zeros(0))
    return ColumnTargets(found, names, notes)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
