"""Columns of lists: what a tokenizer made of texts, and series, from Parquet files and what `datasets` saved."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from pyarrow import Table, parquet

from spatl.data import Dataset, load_dataset
from spatl.data.own import as_found
from spatl.errors import DataError
from spatl.tasks.targets import IGNORED

TEXTS = {"input_ids": [[5, 6, 7, 8], [6, 7], [9, 5, 5]], "who": ["ann", "bob", "ann"], "mood": [2, 0, 2],
         "tags": [[0, 1], [1, 1], [0, 0]]}  # fmt: skip
MOODS = datasets.ClassLabel(names=["low", "middle", "high"])


@pytest.fixture
def saved(tmp_path: Path) -> str:
    table = datasets.Dataset.from_dict(TEXTS).cast_column("mood", MOODS)
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(tmp_path / "saved"))
    return str(tmp_path / "saved")


def read(path: str, task: Any = "classification", **options: Any) -> Dataset:
    with as_found():
        return load_dataset("table", seed=1, options={"path": path, **options}, task=task)


def message(path: str, task: Any = "classification", **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, task, **options)
    return str(caught.value)


def written(directory: Path, **columns: Any) -> str:
    parquet.write_table(Table.from_pydict(columns), directory / "table.parquet")
    return str(directory / "table.parquet")


def test_tokens_that_are_saved_are_cut_and_padded_to_one_length(saved: str) -> None:
    found = read(saved, sequence="input_ids", length=3, target="mood", owner="who")
    assert found.images.dtype == torch.int64
    assert found.images.tolist() == [[5, 6, 7], [6, 7, 0], [9, 5, 5]] * 2
    assert (found.splits.tolist(), found.group_names) == ([0, 0, 0, 2, 2, 2], ("ann", "bob"))
    assert "table: of 6 lists in 'input_ids', 2 are cut to 3, 2 padded with 0" in found.notes


def test_classes_of_a_saved_table_are_in_the_order_in_which_it_names_them(saved: str) -> None:
    """`high` is 2 there and here, though the alphabet has it first; that nobody has `middle` is told."""
    found = read(saved, sequence="input_ids", length=4, target="mood")
    assert (found.class_names, found.targets.tolist()) == (("low", "middle", "high"), [2, 0, 2] * 2)
    assert any("1 of 3 classes have no example: middle" in line for line in found.remarks())


def test_each_token_predicts_the_next_and_padding_counts_for_nothing(saved: str) -> None:
    found = read(saved, "next-token", sequence="input_ids", length=4, owner="who")
    assert found.images.tolist()[:3] == [[5, 6, 7], [6, 7, 0], [9, 5, 5]]
    assert found.targets.tolist()[:3] == [[6, 7, 8], [7, IGNORED, IGNORED], [5, 5, IGNORED]]
    assert (found.num_classes, found.num_tokens) == (10, 10)


def test_next_tokens_may_stand_in_a_column_but_no_token_predicts_itself(tmp_path: Path) -> None:
    """Hugging Face's `labels` repeat `input_ids`: its models shift them, and nobody else does."""
    ids = [[1, 2, 3], [4, 5]]
    path = written(tmp_path, ids=ids, next=[[2, 3, 1], [5, 4]], labels=ids)
    found = read(path, "next-token", sequence="ids", target="next", length=3)
    assert found.images.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert found.targets.tolist() == [[2, 3, 1], [5, 4, IGNORED]]
    told = message(path, sequence="ids", target="labels", length=3, task="next-token")
    assert told.startswith("table: 'labels' repeats 'ids' place by place")


def test_several_labels_may_be_lists_and_series_are_numbers(tmp_path: Path, saved: str) -> None:
    found = read(saved, "multi-label", sequence="input_ids", length=2, target="tags")
    assert found.targets.tolist()[:3] == [[0, 1], [1, 1], [0, 0]]
    series = np.arange(12, dtype=np.float64).reshape(2, 3, 2)
    path = written(tmp_path, series=series.tolist(), price=[1.5, 2.5])
    found = read(path, "regression", sequence="series", target="price")
    assert torch.equal(found.images, torch.from_numpy(series).float())
    assert found.targets.tolist() == [[1.5], [2.5]]


@pytest.mark.parametrize(
    ("columns", "options", "line"),
    [
        ({"x": [[1, 2], [1]]}, {}, "has lists of 1 to 2 numbers: set data.options.length, to which longer ones"),
        ({"x": [[1, 2], []]}, {}, "must hold a list of numbers in each row, whole ones in all or none, as a"),
        ({"x": ["a cat", "a dog"]}, {}, "'x' must hold a list of numbers in each row"),
        ({"x": [[1, 2], None]}, {}, "got an empty cell in row 2"),
        ({"x": [[1, None], [1, 2]]}, {}, "'x' must hold a list of numbers in each row"),
        ({"x": [[1, -2], [1, 2]]}, {}, "of whole numbers are tokens, which are 0 or more, got -2"),
        ({"x": [[0.5, 1.0], [1.0, float("nan")]]}, {}, "must be finite"),
        ({"x": [[1, 2], [1, 2]]}, {"length": 0}, "length must be"),
        ({"x": [[1, 2], [1, 2]]}, {"columns": ["y"]}, "and without columns and categories"),
        ({"x": [[1, 2], [1, 2]]}, {"target": None}, "name the column to predict in data.options.target"),
        ({"x": [[1, 2], [1, 2]]}, {"sequence": "z"}, "has no column 'z'"),
        ({"x": [[1], [2]]}, {"target": None, "task": "next-token"}, "must have two tokens or more"),
        ({"x": [[1.5, 2.0], [1.0, 2.0]]}, {"target": None, "task": "next-token"}, "must hold lists of whole numbers"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, columns: Any, options: Any, line: str) -> None:
    path = written(tmp_path, **columns, y=[0, 1])
    told = message(path, **{"sequence": "x", "target": "y", **options})
    assert line in told
    assert told.startswith("table: ")
    assert "\n" not in told


def test_a_length_without_lists_says_what_it_is_for(tmp_path: Path) -> None:
    path = written(tmp_path, x=[1.0, 2.0], y=[0, 1])
    assert "data.options.sequence names the column of lists" in message(path, target="y", length=5)
