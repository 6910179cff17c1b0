"""Tables that the library `datasets` saved, or that the hub has: columns as in any other, splits by their names."""

import socket
from pathlib import Path
from typing import Any

import datasets
import pytest

from spatl.data import Dataset, load_dataset
from tests.support import refusals

PEOPLE = {"age": [30.0, 41.5, 22.0], "who": ["ann", "bob", "ann"], "sick": [0, 1, 0]}
SICK = datasets.ClassLabel(names=["no", "yes"])


@pytest.fixture(autouse=True)
def _nothing_but_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **keywords: object) -> None:
        raise AssertionError("something reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def people() -> datasets.Dataset:
    return datasets.Dataset.from_dict(PEOPLE).cast_column("sick", SICK)


def read(**options: Any) -> Dataset:
    return load_dataset("table", seed=1, options={"target": "sick", **options})


def message(**options: Any) -> str:
    return refusals.message("table", target="sick", **options)


def saved(directory: Path, *names: str) -> str:
    datasets.DatasetDict({name: people() for name in names}).save_to_disk(str(directory))
    return str(directory)


def test_one_that_is_saved_is_read_like_any_other_table(tmp_path: Path) -> None:
    people().save_to_disk(str(tmp_path / "saved"))
    dataset = read(path=str(tmp_path / "saved"), owner="who")
    assert dataset.images.tolist() == [[30], [41.5], [22]]
    assert (dataset.class_names, dataset.targets.tolist()) == (("no", "yes"), [0, 1, 0])
    assert (dataset.group_names, dataset.splits, dataset.scale) == (("ann", "bob"), None, "feature")


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train", "test"), [0, 0, 0, 2, 2, 2]),
        (("training", "dev"), [0, 0, 0, 1, 1, 1]),
        (("train", "unsupervised"), None),  # nobody knows what the second is for
        (("dev", "test"), None),  # and nothing is for training
    ],
)
def test_splits_are_those_that_were_saved_where_their_names_say_so(tmp_path, names, splits):
    dataset = read(path=saved(tmp_path / "saved", *names), columns=["age"])
    assert (None if dataset.splits is None else dataset.splits.tolist()) == splits
    assert dataset.targets.tolist() == [0, 1, 0, 0, 1, 0]
    assert read(path=str(tmp_path / "saved"), columns=["age"], pool=True).splits is None


def test_the_hub_is_asked_only_where_it_may_be(monkeypatch):
    asked = []

    def load(name: str, subset: str | None, *, revision: str | None) -> datasets.DatasetDict:
        asked.append((name, subset, revision))
        return datasets.DatasetDict({"train": people(), "validation": people()})

    monkeypatch.setattr(datasets, "load_dataset", load)
    refused = message(name="some/people", columns=["age"])
    assert refused.startswith("table: 'some/people' would be downloaded from the Hugging Face hub")
    assert asked == []
    dataset = read(name="some/people", hub=True, subset="all", revision="v1", columns=["age"])
    assert asked == [("some/people", "all", "v1")]
    assert dataset.splits is not None
    assert dataset.splits.tolist() == [0, 0, 0, 1, 1, 1]


def test_mistakes_are_one_line_with_the_row(tmp_path: Path) -> None:
    people().save_to_disk(str(tmp_path / "saved"))
    path = str(tmp_path / "saved")
    assert message(path=path, columns=["agee"]).startswith(f"table: {path} has no column 'agee'")
    assert "'who' must hold finite numbers" in message(path=path)
    datasets.Dataset.from_dict({"age": [1.0, None], "sick": ["a", "b"]}).save_to_disk(str(tmp_path / "empty"))
    assert "got an empty cell in row 2 of split train" in message(path=str(tmp_path / "empty"))
    odd = datasets.DatasetDict({"train": people(), "test": datasets.Dataset.from_dict({"age": [1.0]})})
    odd.save_to_disk(str(tmp_path / "odd"))
    assert "has other columns than those before" in message(path=str(tmp_path / "odd"))
    both = message(path=path, name="a/b")
    assert both.startswith("table: set data.options.path to a local directory, or")
    assert message(path=path, hub=True).startswith("table: data.options.hub goes with data.options.name")
    assert message().startswith("table: ")
