"""Columns of lists of numbers, such as what a tokenizer made of a text, as inputs of one length."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spatl.data.brought import examples_of
from spatl.data.cells import Cells
from spatl.data.checks import check_integer
from spatl.data.dataset import Dataset
from spatl.data.labels import listed
from spatl.data.table_targets import targets_in
from spatl.errors import DataError
from spatl.tasks.targets import IGNORED, TASKS, TaskName

_LONGEST: Final = 32_768


def sequences(
    cells: Cells, column: str, *, targets: list[str], owner: str | None, splits: Tensor | None, length: int | None,
    task: TaskName,
) -> Dataset:  # fmt: skip
    """Return lists of numbers as examples: whole numbers are tokens `[N, T]`, others float32 `[N, T, ...]`.

    Args:
        cells: The table.
        column: The column of the lists.
        targets: The columns to predict; of next tokens one with a list of the token after each, or none: then each
            sequence is shifted by one.
        owner: The column that says whose a row is.
        splits: As of `Dataset`.
        length: T: longer lists are cut, shorter ones padded with 0, whose next tokens do not count. Without, all must
            have one length.
        task: What the targets are for.

    Raises:
        DataError: A cell is no such list, or targets do not fit.
    """
    for name in (column, *targets, *([] if owner is None else [owner])):
        cells.check_has(name)
    values, counts = padded(cells, column, length)
    where, notes = f"table: {cells.root}", _told(cells, column, length)
    groups = None if owner is None else cells.texts(owner)
    if not TASKS[task].by_place:
        if not targets:
            raise DataError(
                f"table: name the column to predict in data.options.target; {cells.root} has {listed(cells.names)}"
            )
        found = targets_in(cells, targets, task)
        made = examples_of(
            values, np.zeros(len(values), np.int64), name="table", where=where, task="classification", groups=groups
        )
        return Dataset(
            "table", made.inputs, found.values, num_classes=len(found.names), class_names=found.names,
            notes=(*notes, *found.notes), groups=made.groups, group_names=made.group_names, splits=splits,
            scale=made.scale, task=task,
        )  # fmt: skip
    inputs, aims = _next(cells, column, targets, values, counts, length)
    return examples_of(
        inputs, aims, name="table", where=where, task=task, groups=groups, notes=notes,
        splits=None if splits is None else splits.numpy(),
    )  # fmt: skip


def padded(
    cells: Cells, column: str, length: int | None, *, padding: int = 0
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return a column of lists as an array `[N, T, ...]`, and where it holds what was in them, bool `[N, T]`.

    Raises:
        DataError: A cell is no list of numbers, or they have several lengths and none is given.
    """
    if length is not None:
        check_integer("table", "length", length, 1, _LONGEST)
    rows = cells.values(column)
    found = [_array(cell) for cell in rows]
    first = next((each for each in found if each is not None), None)
    kinds = () if first is None else ("f",) if first.dtype.kind == "f" else ("i", "u")
    wrong = [
        row for row, each in enumerate(found)
        if each is None or first is None or each.dtype.kind not in kinds or each.shape[1:] != first.shape[1:]
    ]  # fmt: skip
    if wrong or first is None:
        raise cells.misfit(
            column, "must hold a list of numbers in each row, whole ones in all or none, as a tokenizer makes them",
            wrong, rows,
        )  # fmt: skip
    arrays = [each for each in found if each is not None]
    lengths = [len(each) for each in arrays]
    if length is None and min(lengths) < max(lengths):
        raise DataError(
            f"table: the column {column!r} of {cells.root} has lists of {min(lengths)} to {max(lengths)} numbers: set "
            "data.options.length, to which longer ones are cut and shorter ones padded with 0"
        )
    length = max(lengths) if length is None else length
    values = np.full((len(arrays), length, *first.shape[1:]), padding, np.float32 if kinds == ("f",) else np.int64)
    counts = np.zeros((len(arrays), length), bool)
    for row, each in enumerate(arrays):
        values[row, : len(each)] = each[:length]
        counts[row, : len(each)] = True
    return values, counts


def _array(cell: object) -> NDArray[Any] | None:
    """Return a list of numbers as an array `[T, ...]`; None for anything else."""
    if not isinstance(cell, list | tuple) or not cell:
        return None
    try:
        array = np.asarray(cell)
    except ValueError:  # lists of unequal lengths in it
        return None
    return array if array.dtype.kind in "iuf" and array.size else None


def _told(cells: Cells, column: str, length: int | None) -> tuple[str, ...]:
    """Return what a user should know of lists that are not of the length asked for."""
    if length is None:
        return ()
    lengths = [len(cell) for cell in cells.values(column)]
    cut, short = sum(each > length for each in lengths), sum(each < length for each in lengths)
    if not cut and not short:
        return ()
    return (f"table: of {len(lengths)} lists in {column!r}, {cut} are cut to {length}, {short} padded with 0",)


def _next(
    cells: Cells, column: str, targets: list[str], values: NDArray[Any], counts: NDArray[np.bool_], length: int | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return inputs, and the token after each of their places.

    Raises:
        DataError: There are no such tokens, or they are the inputs themselves.
    """
    if values.dtype.kind == "f" or values.ndim != 2:
        raise DataError(f"table: the column {column!r} must hold lists of whole numbers, which next-token predicts")
    if not targets:
        if values.shape[1] < 2:
            raise DataError(
                f"table: the lists in {column!r} must have two tokens or more, of which each predicts the next"
            )
        return values[:, :-1], np.where(counts[:, 1:], values[:, 1:], IGNORED)
    if len(targets) > 1:
        raise DataError(f"table: of next tokens one column holds the targets, got {', '.join(targets)}")
    aims, told = padded(cells, targets[0], length, padding=IGNORED)
    if aims.shape != values.shape:
        raise DataError(
            f"table: {targets[0]!r} must have a next token for each place of {column!r}, got {list(aims.shape)} of "
            f"{list(values.shape)}"
        )
    judged = told & (aims != IGNORED)
    if bool((aims == values)[judged].all()):
        raise DataError(
            f"table: {targets[0]!r} repeats {column!r} place by place, so that a token would predict itself: leave "
            "data.options.target out, and each sequence is shifted by one"
        )
    return values, aims
