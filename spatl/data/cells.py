"""Cells of tables that lie on disk, or on the hub: text, Parquet, and what the library `datasets` saves."""

import csv
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from spatl.data.checks import missing_package, one_line
from spatl.data.hub import hub_splits, is_saved, saved_splits
from spatl.data.labels import listed
from spatl.errors import DataError, did_you_mean
from spatl.pixels.files import LARGEST_VALUE

_TRUTHS: Final = {"true": 1.0, "false": 0.0}  # as Parquet's
_SUFFIXES: Final = (".csv", ".tsv", ".parquet")


class Cells:
    """Cells by column, and where each row stands, for messages.

    Args:
        root: The file or directory.
        names: The columns' names, in order.
        cells: By name, texts of a text file and values of any type of another.
        rows: By file or split, the number by which each of its rows is called: of a file of text the line it begins in.
        splits: The name of each row's split where the tables came in several, of other names than files have.
        classes: By column that holds classes the source has named, their names in its order.
    """

    def __init__(
        self, root: Path | str, names: Sequence[str], cells: Mapping[str, list[Any]],
        rows: Mapping[Path | str, Sequence[int]], splits: Sequence[str] | None = None,
        classes: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:  # fmt: skip
        self.root, self.names, self.splits, self.classes = root, tuple(names), splits, dict(classes or {})
        self._cells, self._rows = cells, rows

    @classmethod
    def read(cls, root: Path, delimiter: str | None) -> "Cells":
        """Read a file, or all tables of a directory.

        Raises:
            DataError: There is none, or it is no table, or they have different columns.
        """
        if is_saved(root):
            return cls._of_splits(root, saved_splits("table", root))
        if delimiter is not None and (not isinstance(delimiter, str) or len(delimiter) != 1):
            raise DataError(f"table: delimiter must be one character, got {delimiter!r:.20}")
        files = [root]
        if root.is_dir():
            files = sorted(file for file in root.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file())
        if not files or not files[0].exists():
            raise DataError(f"table: no table {root}; expected a file {', '.join(_SUFFIXES)}, or a directory of them")
        cells: dict[str, list[Any]] = {}
        rows: dict[Path | str, Sequence[int]] = {}
        for file in files:
            found, rows[file] = _parquet(file) if file.suffix.lower() == ".parquet" else _text(file, delimiter)
            if cells and found.keys() != cells.keys():
                odd = sorted(found.keys() ^ cells.keys())
                raise DataError(f"table: {file} has other columns than {files[0]}: {listed(odd)}")
            for name, values in found.items():
                cells.setdefault(name, []).extend(values)
        if not any(map(len, rows.values())):
            raise DataError(f"table: {root} has no row below the columns' names")
        return cls(root, list(cells), cells, rows)

    @classmethod
    def of_hub(cls, name: str, *, subset: str | None, revision: str | None) -> "Cells":
        """Read all splits of a data set of the Hugging Face hub, over the network.

        Raises:
            DataError: The library is missing, the hub does not give it, or its splits have different columns.
        """
        return cls._of_splits(name, hub_splits("table", name, subset=subset, revision=revision))

    @classmethod
    def _of_splits(cls, root: Path | str, tables: Mapping[str, Any]) -> "Cells":
        """Put tables of the library `datasets` one below the other."""
        cells: dict[str, list[Any]] = {}
        for split, table in tables.items():
            found = _plain_columns(table)
            if cells and found.keys() != cells.keys():
                odd = sorted(found.keys() ^ cells.keys())
                raise DataError(
                    f"table: the split {split} of {root} has other columns than those before: {listed(odd)}"
                )
            for name, values in found.items():
                cells.setdefault(name, []).extend(values)
        rows: dict[Path | str, Sequence[int]] = {
            f"split {split}": _from_1(len(table)) for split, table in tables.items()
        }
        if not any(map(len, rows.values())):
            raise DataError(f"table: {root} has no row")
        named = [split for split, table in tables.items() for _ in range(len(table))] if len(tables) > 1 else None
        return cls(root, list(cells), cells, rows, named, _named_classes(list(tables.values())))

    def check_has(self, name: str) -> None:
        """Raise a `DataError` where there is no such column."""
        if name not in self._cells:
            hint = did_you_mean(name, self.names)
            raise DataError(f"table: {self.root} has no column {name!r}{hint}; it has {listed(self.names)}")

    def place(self, row: int) -> str:
        """Return where a row stands, counted from 0 over all files."""
        for file, numbers in self._rows.items():
            if row < len(numbers):
                return f"{'row' if isinstance(numbers, range) else 'line'} {numbers[row]} of {file}"
            row -= len(numbers)
        raise IndexError(row)

    def values(self, name: str) -> list[Any]:
        """Return a column's cells as they were read."""
        return self._cells[name]

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
                values[row] = _TRUTHS.get(cell.strip().lower(), cell) if isinstance(cell, str) else cell
                if isinstance(cell, str) and "_" in cell:  # 1_0 is ten to Python alone
                    wrong.append(row)
                    continue
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


def _plain_columns(table: Any) -> dict[str, list[Any]]:
    """Return a table's columns as lists of Python's values; numbers that stand for named classes as their names."""
    columns: dict[str, list[Any]] = table.with_format("arrow")[:].to_pydict()
    for name, feature in table.features.items():
        if (names := getattr(feature, "names", None)) is not None:
            columns[name] = [
                names[cell] if type(cell) is int and 0 <= cell < len(names) else None for cell in columns[name]
            ]
    return columns


def _named_classes(tables: Sequence[Any]) -> dict[str, tuple[str, ...]]:
    """Return the names of classes by column, in the order in which all of these tables have them."""
    named = [
        {
            name: tuple(map(str.strip, each.names))
            for name, each in table.features.items()
            if getattr(each, "names", None)
        }
        for table in tables
    ]
    return {name: names for name, names in named[0].items() if all(each.get(name) == names for each in named)}


def _from_1(number: int) -> range:
    return range(1, number + 1)


def _text(file: Path, delimiter: str | None) -> tuple[dict[str, list[Any]], Sequence[int]]:
    """Read a file of text; return its columns, and the line in which each row begins."""
    delimiter = delimiter or ("\t" if file.suffix.lower() == ".tsv" else ",")
    begun = [1]
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            return _columns(file, csv.reader(stream, delimiter=delimiter, strict=True), begun)
    except UnicodeDecodeError as error:
        raise DataError(
            f"table: {file} is no text in UTF-8, for it has a byte {error.object[error.start]:#04x}: write it anew in "
            "that, as iconv or a spreadsheet does"
        ) from error
    except csv.Error as error:
        advice = "is a quote not closed?" if "unexpected end" in str(error) else one_line(error)
        raise DataError(f"table: {file} is no table from line {begun[0]} on: {advice}") from error


def _columns(file: Path, lines: Any, begun: list[int]) -> tuple[dict[str, list[Any]], Sequence[int]]:
    names = [name.strip() for name in next(lines, [])]
    if not any(names):
        raise DataError(f"table: {file} is empty; its first line must have the columns' names")
    if len(names) == 1 and (between := [each for each in ";\t|," if each in names[0]]):
        raise DataError(
            f"table: {file} has one column, {names[0]!r:.60}: if its cells stand between {between[0]!r}, set "
            f"data.options.delimiter: {between[0]!r}"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"table: {file} names the column {twice[0]!r} twice")
    columns: list[list[Any]] = [[] for _ in names]
    numbers = array("q")
    begun[0] = lines.line_num + 1
    for cells in lines:
        number, begun[0] = begun[0], lines.line_num + 1  # a cell in quotes may hold several lines
        if not cells:
            continue  # an empty line, as at the end
        numbers.append(number)
        if len(cells) != len(names):
            raise DataError(
                f"table: line {number} of {file} has {len(cells)} cells, the first line names {len(names)} columns"
            )
        for column, cell in zip(columns, cells, strict=True):
            column.append(cell)
    return dict(zip(names, columns, strict=True)), numbers


def _parquet(file: Path) -> tuple[dict[str, list[Any]], Sequence[int]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise missing_package("data set 'table' of a .parquet file", "pyarrow") from error
    try:
        found = {name: list(column) for name, column in parquet.read_table(file).to_pydict().items()}
        return found, _from_1(max(map(len, found.values()), default=0))
    except (ArrowException, OSError) as error:
        raise DataError(f"table: {file} is no Parquet file that can be read: {one_line(error)}") from error
