"""Tables of the user's own, CSV or Parquet: a row per example, columns of numbers and categories, and a target."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.data.checks import check_switch, missing_package, one_line, path_option
from spatl.data.dataset import SPLITS, Dataset
from spatl.data.images import numbered
from spatl.data.labels import class_labels, listed
from spatl.errors import DataError, did_you_mean
from spatl.pixels.files import LARGEST_VALUE

_SUFFIXES: Final = (".csv", ".tsv", ".parquet")
_SPLIT_NAMES: Final = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip
_MOST_CATEGORIES: Final = 1000


def table(
    seed: int,
    *,
    path: str | None = None,
    target: str | Sequence[str] | None = None,
    owner: str | None = None,
    split: str | None = None,
    columns: Sequence[str] | None = None,
    categories: Sequence[str] | Mapping[str, Sequence[str]] = (),
    delimiter: str | None = None,
    pool: bool = False,
    task: str = "classification",
) -> Dataset:
    """Return the rows of a table as examples.

    Args:
        seed: Ignored; the rows are fixed.
        path: A file `.csv`, `.tsv` or `.parquet` with the columns' names, or a directory of such files, read in the
            order of their names as one table.
        target: The column to predict: of a classification whole numbers or texts, each of which makes a class; of a
            regression numbers. A list of columns for several labels (0 or 1) or values.
        owner: The column that says whose a row is, for the partitioner `natural`.
        split: The column that says `train`, `validation` or `test`; each client draws its own splits without.
        columns: The columns that the model sees; all the others if not given.
        categories: Those of them whose values, numbers or texts, are categories: each value becomes a column of 0 and
            1. A mapping names the values, which are then the same in each device's file.
        delimiter: What is between the cells of a text file; a comma, or a tabulator in `.tsv`.
        pool: Whether the split is passed over, and each client draws its own.
        task: What the target is for, as of `task.name`.

    Returns:
        Inputs `[N, F]`, float32, as found; each is scaled by itself (`data.normalisation`).

    Raises:
        DataError: The file is not there or no table, a column is not there, or a cell is not what its column must hold.
    """
    check_switch("table", "pool", pool)
    root = path_option("table", path, expected="a .csv, .tsv or .parquet file with the columns' names, or a directory")
    cells = _Table.read(root, delimiter)
    targets = _names("target", target)
    shown = _shown(cells, targets, owner, split, columns)
    inputs = _inputs(cells, shown, categories)
    values, names, notes = _targets(cells, targets, task)
    groups, owners = (None, ()) if owner is None else numbered(np.array(cells.texts(owner)))
    return Dataset(
        "table", torch.from_numpy(inputs), values, num_classes=len(names), class_names=names, notes=notes,
        groups=None if groups is None else torch.from_numpy(groups), group_names=owners,
        splits=None if split is None or pool else _splits(cells, split), scale="feature",
    )  # fmt: skip


def _shown(
    cells: "_Table", targets: Sequence[str], owner: str | None, split: str | None, columns: Sequence[str] | None
) -> list[str]:
    """Return the columns that the model sees.

    Raises:
        DataError: A column is not there or is two things at once, or none is left.
    """
    if not targets:
        raise DataError(
            f"table: name the column to predict in data.options.target; {cells.root} has {listed(cells.names)}"
        )
    special = {*targets, *(each for each in (owner, split) if each is not None)}
    for name in special:
        cells.check_has(name)
    shown = [name for name in cells.names if name not in special] if columns is None else _names("columns", columns)
    for name in shown:
        cells.check_has(name)
        if name in special:
            raise DataError(f"table: the column {name!r} cannot be an input and {_role(name, owner, split)} at once")
    if not shown:
        raise DataError(
            f"table: {cells.root} has no column besides {listed(sorted(special))}, so that a model sees nothing"
        )
    return shown


class _Table:
    """Cells by column, and where each row stands, for messages.

    Args:
        root: The file or directory.
        names: The columns' names, in order.
        cells: By name, texts of a text file and values of any type of another.
        rows: By file, how many rows it has.
        first: The number by which a file's first row is called.
    """

    def __init__(
        self, root: Path, names: Sequence[str], cells: Mapping[str, list[Any]], rows: Mapping[Path, int], first: int
    ) -> None:
        self.root, self.names, self._cells, self._rows, self._first = root, tuple(names), cells, rows, first

    @classmethod
    def read(cls, root: Path, delimiter: str | None) -> "_Table":
        """Read a file, or all tables of a directory.

        Raises:
            DataError: There is none, or it is no table, or they have different columns.
        """
        if delimiter is not None and (not isinstance(delimiter, str) or len(delimiter) != 1):
            raise DataError(f"table: delimiter must be one character, got {delimiter!r:.20}")
        files = [root]
        if root.is_dir():
            files = sorted(file for file in root.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file())
        if not files or not files[0].exists():
            raise DataError(f"table: no table {root}; expected a file {', '.join(_SUFFIXES)}, or a directory of them")
        cells: dict[str, list[Any]] = {}
        rows: dict[Path, int] = {}
        for file in files:
            found = _parquet(file) if file.suffix.lower() == ".parquet" else _text(file, delimiter)
            if cells and found.keys() != cells.keys():
                odd = sorted(found.keys() ^ cells.keys())
                raise DataError(f"table: {file} has other columns than {files[0]}: {listed(odd)}")
            rows[file] = len(next(iter(found.values())))
            for name, values in found.items():
                cells.setdefault(name, []).extend(values)
        if not sum(rows.values()):
            raise DataError(f"table: {root} has no row below the columns' names")
        return cls(root, list(cells), cells, rows, 1 if files[0].suffix.lower() == ".parquet" else 2)

    def check_has(self, name: str) -> None:
        """Raise a `DataError` where there is no such column."""
        if name not in self._cells:
            hint = did_you_mean(name, self.names)
            raise DataError(f"table: {self.root} has no column {name!r}{hint}; it has {listed(self.names)}")

    def place(self, row: int) -> str:
        """Return where a row stands, counted from 0 over all files."""
        for file, number in self._rows.items():
            if row < number:
                return f"{'row' if self._first == 1 else 'line'} {row + self._first} of {file}"
            row -= number
        raise IndexError(row)

    def texts(self, name: str) -> list[str]:
        """Return a column's cells as texts.

        Raises:
            DataError: One is empty.
        """
        cells = self._cells[name]
        found = ["" if cell is None or cell != cell else str(cell).strip() for cell in cells]  # NaN
        empty = [row for row, text in enumerate(found) if not text]
        if empty:
            raise self.misfit(name, "must have no empty cell", empty, self._cells[name])
        return found

    def numbers(self, name: str, *, advice: str) -> NDArray[np.float64]:
        """Return a column's cells as numbers.

        Raises:
            DataError: One is none, or not finite.
        """
        cells, values = self._cells[name], np.empty(len(self._cells[name]))
        wrong = []
        for row, cell in enumerate(cells):
            try:
                values[row] = cell
            except (TypeError, ValueError):
                wrong.append(row)
                continue
            if not abs(values[row]) <= LARGEST_VALUE:  # NaN is not, either
                wrong.append(row)
        if wrong:
            raise self.misfit(name, f"must hold finite numbers{advice}", wrong, cells)
        return values

    def misfit(self, name: str, expected: str, wrong: Sequence[int], cells: Sequence[Any]) -> DataError:
        """Return the error of a column some of whose cells do not fit."""
        cell = cells[wrong[0]]
        found = "an empty cell" if cell is None or str(cell).strip() == "" else repr(cell)[:60]
        more = f" and {len(wrong) - 1} others" if len(wrong) > 1 else ""
        return DataError(f"table: the column {name!r} {expected}, got {found} in {self.place(wrong[0])}{more}")


def _text(file: Path, delimiter: str | None) -> dict[str, list[Any]]:
    """Read a file of text."""
    delimiter = delimiter or ("\t" if file.suffix.lower() == ".tsv" else ",")
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            return _columns(file, csv.reader(stream, delimiter=delimiter, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"table: {file} is no table of text in UTF-8: {one_line(error)}") from error


def _columns(file: Path, lines: Iterator[list[str]]) -> dict[str, list[Any]]:
    names = [name.strip() for name in next(lines, [])]
    if not any(names):
        raise DataError(f"table: {file} is empty; its first line must have the columns' names")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"table: {file} names the column {twice[0]!r} twice")
    columns: list[list[Any]] = [[] for _ in names]
    for number, cells in enumerate(lines, start=2):
        if not cells:
            continue  # an empty line, as at the end
        if len(cells) != len(names):
            raise DataError(
                f"table: line {number} of {file} has {len(cells)} cells, the first line names {len(names)} columns"
            )
        for column, cell in zip(columns, cells, strict=True):
            column.append(cell)
    return dict(zip(names, columns, strict=True))


def _parquet(file: Path) -> dict[str, list[Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise missing_package("data set 'table' of a .parquet file", "pyarrow") from error
    try:
        return {name: list(column) for name, column in parquet.read_table(file).to_pydict().items()}
    except (ArrowException, OSError) as error:
        raise DataError(f"table: {file} is no Parquet file that can be read: {one_line(error)}") from error


def _names(option: str, given: object) -> list[str]:
    """Return the names of columns that an option gives: one, or a list."""
    names = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise DataError(f"table: {option} must be a column's name or a list of names, got {given!r:.60}")
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise DataError(f"table: {option} names {twice[0]!r} twice")
    return list(names)


def _role(name: str, owner: str | None, split: str | None) -> str:
    return "the owner" if name == owner else "the split" if name == split else "the target"


def _inputs(
    cells: _Table, shown: Sequence[str], categories: Sequence[str] | Mapping[str, Sequence[str]]
) -> NDArray[np.float32]:
    """Return what the model sees, `[N, F]`."""
    known = dict(categories) if isinstance(categories, Mapping) else dict.fromkeys(_names("categories", categories))
    for name in known:
        cells.check_has(name)
        if name not in shown:
            raise DataError(f"table: categories names {name!r}, which is no column that the model sees")
    found: list[NDArray[np.float32]] = []
    for name in shown:
        if name in known:
            found.append(_one_hot(cells, name, known[name]))
        else:
            advice = "; name a column of texts in data.options.categories, or leave it out of data.options.columns"
            found.append(cells.numbers(name, advice=advice).astype(np.float32)[:, None])
    return np.concatenate(found, axis=1)


def _one_hot(cells: _Table, name: str, given: Sequence[str] | None) -> NDArray[np.float32]:
    """Return a column of categories as one of 0 and 1 for each, `[N, K]`."""
    texts = cells.texts(name)
    values = sorted(set(texts)) if given is None else [str(value) for value in given]
    if len(set(values)) < len(values) or not 1 <= len(values) <= _MOST_CATEGORIES:
        raise DataError(
            f"table: the column {name!r} must have 1 to {_MOST_CATEGORIES} different categories, got {len(values)}: "
            "are these ids?"
        )
    place = {value: number for number, value in enumerate(values)}
    if wrong := [row for row, text in enumerate(texts) if text not in place]:
        raise cells.misfit(name, f"must hold one of {listed(values)}", wrong, texts)
    hot = np.zeros((len(texts), len(values)), dtype=np.float32)
    hot[np.arange(len(texts)), [place[text] for text in texts]] = 1.0
    return hot


def _targets(cells: _Table, names: list[str], task: str) -> tuple[Tensor, tuple[str, ...], tuple[str, ...]]:
    """Return targets as the task has them, the names of the outputs, and what to tell of them."""
    if task == "classification":
        if len(names) > 1:
            raise DataError(
                f"table: a classification has one target, got {listed(names)}; for several labels of 0 and 1 set "
                "task.name: multi-label"
            )
        values = cells.texts(names[0])
        numeric = all(_is_number(value) for value in values)
        labels = class_labels("table", np.array(values, dtype=np.float64) if numeric else np.array(values))
        return torch.from_numpy(labels.numbers), labels.names, labels.notes
    if task not in ("regression", "multi-label"):
        raise DataError(f"table: a table has no targets for the task {task}: take classification or regression")
    found = np.stack([cells.numbers(name, advice="") for name in names], axis=1).astype(np.float32)
    for column, name in enumerate(names if task == "multi-label" else ()):
        if len(wrong := np.flatnonzero(~np.isin(found[:, column], (0, 1)))):
            raise cells.misfit(name, "must hold 0 or 1", wrong.tolist(), found[:, column].tolist())
    return torch.from_numpy(found), tuple(names), ()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _splits(cells: _Table, name: str) -> Tensor:
    """Return the place in `SPLITS` of the split of each row."""
    texts = [text.lower() for text in cells.texts(name)]
    if wrong := [row for row, text in enumerate(texts) if text not in _SPLIT_NAMES]:
        raise cells.misfit(name, "must say train, validation or test", wrong, texts)
    if "train" not in {_SPLIT_NAMES[text] for text in texts}:
        raise DataError(f"table: the column {name!r} says of no row that it is for training (train)")
    return torch.tensor([SPLITS.index(_SPLIT_NAMES[text]) for text in texts])
