"""Tables of the user's own, CSV or Parquet: a row per example, columns of numbers and categories, and a target."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.data.cells import Cells
from spatl.data.checks import check_switch, check_text, path_option
from spatl.data.dataset import SPLITS, Dataset
from spatl.data.hub import check_source
from spatl.data.images import numbered
from spatl.data.labels import listed
from spatl.data.sequences import sequences
from spatl.data.table_targets import targets_in
from spatl.errors import DataError
from spatl.tasks.targets import TaskName

_EXPECTED: Final = "a .csv, .tsv or .parquet file with the columns' names, or a directory"
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
    sequence: str | None = None,
    length: int | None = None,
    delimiter: str | None = None,
    pool: bool = False,
    name: str | None = None,
    hub: bool = False,
    subset: str | None = None,
    revision: str | None = None,
    task: TaskName = "classification",
) -> Dataset:
    """Return the rows of a table as examples.

    Args:
        seed: Ignored; the rows are fixed.
        path: A file `.csv`, `.tsv` or `.parquet` with the columns' names, or a directory of such files, read in the
            order of their names as one table; or what `save_to_disk` of the library `datasets` wrote.
        target: The column to predict: of a classification whole numbers or texts, each of which makes a class; of a
            regression numbers. A list of columns for several labels (0 or 1) or values.
        owner: The column that says whose a row is, for the partitioner `natural`.
        split: The column that says `train`, `validation` or `test`. Without, the splits are those that the library
            `datasets` saved or the hub has, if all have such names; else each client draws its own.
        columns: The columns that the model sees; all the others if not given.
        categories: Those of them whose values, numbers or texts, are categories: each value becomes a column of 0 and
            1. A mapping names the values, which are then the same in each device's file.
        sequence: In place of columns, one that holds lists of numbers, as Parquet and the library `datasets` can: whole
            numbers are tokens, of which each predicts the next where `target` names no such list, others a series.
        length: To how many numbers such lists are cut, or padded with 0; all must have one length if not given.
        delimiter: What is between the cells of a text file; a comma, or a tabulator in `.tsv`.
        pool: Whether the split is passed over, and each client draws its own.
        name: A data set of the Hugging Face hub in place of a path, e.g. `owner/name`; needs `hub`.
        hub: Whether the network may be used.
        subset: Which of the hub data set's configurations, where it has several.
        revision: Which version of the hub's data set; its newest if not given.
        task: What the target is for, as of `task.name`.

    Returns:
        Inputs `[N, F]`, float32, as found, of which each is scaled by itself (`data.normalisation`); or sequences.

    Raises:
        DataError: The file is not there or no table, a column is not there, or a cell is not what its column must hold.
    """
    check_switch("table", "pool", pool)
    check_switch("table", "hub", hub)
    cells = _cells(path, delimiter, name=name, hub=hub, subset=subset, revision=revision)
    targets = _names("target", target)
    if _has_lists(sequence, length, columns, categories):
        splits = None if pool else _splits(cells, split)
        return sequences(cells, str(sequence), targets=targets, owner=owner, splits=splits, length=length, task=task)
    shown = _shown(cells, targets, owner, split, columns)
    splits = None if pool else _splits(cells, split)
    return _rows(cells, _inputs(cells, shown, categories), targets, owner=owner, splits=splits, task=task)


def _rows(
    cells: Cells, inputs: NDArray[np.float32], targets: list[str], *, owner: str | None, splits: Tensor | None,
    task: TaskName,
) -> Dataset:  # fmt: skip
    """Return the rows of a table as examples, given what a model sees of them."""
    found = targets_in(cells, targets, task)
    groups, owners = (None, ()) if owner is None else numbered(np.array(cells.texts(owner)))
    return Dataset(
        "table", torch.from_numpy(inputs), found.values, num_classes=len(found.names), class_names=found.names,
        notes=found.notes, groups=None if groups is None else torch.from_numpy(groups), group_names=owners,
        splits=splits, scale="feature", task=task,
    )  # fmt: skip


def _has_lists(sequence: object, length: object, columns: object, categories: object) -> bool:
    """Return whether a column of lists is what a model sees.

    Raises:
        DataError: Options go together that do not.
    """
    if sequence is None and length is None:
        return False
    if not isinstance(sequence, str) or columns is not None or categories:
        raise DataError(
            "table: data.options.sequence names the column of lists that a model sees, with length, and without "
            f"columns and categories, got sequence={sequence!r:.60} and length={length!r:.60}"
        )
    return True


def _cells(
    path: str | None, delimiter: str | None, *, name: str | None, hub: bool, subset: str | None, revision: str | None
) -> Cells:
    """Return the cells of the one source that the options of `table` name."""
    if name is None and path is None:
        path_option("table", path, expected=_EXPECTED)
    for option, text in (("name", name), ("subset", subset), ("revision", revision)):
        if text is not None:
            check_text("table", option, text)
    check_source("table", name, path, hub=hub, subset=subset, revision=revision)
    if name is not None:
        return Cells.of_hub(name, subset=subset, revision=revision)
    return Cells.read(path_option("table", path, expected=_EXPECTED), delimiter)


def _shown(
    cells: Cells, targets: Sequence[str], owner: str | None, split: str | None, columns: Sequence[str] | None
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
    cells: Cells, shown: Sequence[str], categories: Sequence[str] | Mapping[str, Sequence[str]]
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


def _one_hot(cells: Cells, name: str, given: Sequence[str] | None) -> NDArray[np.float32]:
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


def _splits(cells: Cells, name: str | None) -> Tensor | None:
    """Return the place in `SPLITS` of the split of each row, as a column or the source says; None where none does."""
    if name is None:
        known = [_SPLIT_NAMES.get(split.lower()) for split in cells.splits or ()]
        places = [SPLITS.index(split) for split in known if split is not None]
        return torch.tensor(places) if len(places) == len(known) and 0 in places else None
    texts = [text.lower() for text in cells.texts(name)]
    if wrong := [row for row, text in enumerate(texts) if text not in _SPLIT_NAMES]:
        raise cells.misfit(name, "must say train, validation or test", wrong, texts)
    if "train" not in {_SPLIT_NAMES[text] for text in texts}:
        raise DataError(f"table: the column {name!r} says of no row that it is for training (train)")
    return torch.tensor([SPLITS.index(_SPLIT_NAMES[text]) for text in texts])
