"""Tables that the library `datasets` reads, and when the network may be used."""

import socket
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from spatl.data import load_dataset
from spatl.data.images import standardise
from tests.support.formats import png, random_pixels, write_parquet
from tests.support.refusals import message


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **keywords: object) -> None:
        raise AssertionError("something reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.load, "increase_load_count", refuse)


class FakeHub:
    """Stands in for `datasets.load_dataset`, and remembers what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, splits: dict[str, dict[str, list[Any]]]) -> None:
        self.asked: list[tuple[str, str | None, str | None]] = []
        self._splits = {split: datasets.Dataset.from_dict(columns) for split, columns in splits.items()}
        monkeypatch.setattr(datasets, "load_dataset", self._load)

    def _load(self, name: str, subset: str | None, *, revision: str | None) -> datasets.DatasetDict:
        self.asked.append((name, subset, revision))
        return datasets.DatasetDict(self._splits)


def encoded(num_examples: int, *shape: int, seed: int = 0) -> list[dict[str, Any]]:
    return [{"bytes": png(image), "path": None} for image in random_pixels(num_examples, *shape, seed=seed)]


def test_parquet_files_of_a_directory_are_pooled_with_names_and_groups(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00001.parquet", 6, seed=1)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", 3, seed=2)
    dataset = load_dataset("huggingface", seed=1, options={"path": str(tmp_path), "group": "owner"})
    pixels = np.concatenate([random_pixels(3, 8, 8, 3, seed=2), random_pixels(6, 8, 8, 3, seed=1)])
    assert dataset.inputs.equal(torch.from_numpy(standardise(pixels.transpose(0, 3, 1, 2))[0]))
    assert dataset.targets.tolist() == [0, 1, 0, 0, 1, 0, 1, 0, 1]
    assert dataset.class_names == ("cat", "dog", "eel")
    assert dataset.groups is not None
    assert dataset.groups.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]


def test_a_split_is_chosen_by_the_name_of_its_file_or_folder(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00001.parquet", 6)
    write_parquet(tmp_path / "test" / "0000.parquet", 3)
    options = {"path": str(tmp_path), "splits": ["test"]}
    assert len(load_dataset("huggingface", seed=1, options=options)) == 3
    assert "no split 'valid'; the data set has test, train" in message(
        "huggingface", path=str(tmp_path), splits=["valid"]
    )


def test_a_path_is_no_pattern(tmp_path: Path) -> None:
    """As a pattern, `run[1]` is the directory `run1`, and `run*` is all three."""
    for directory, number in (("run1", 9), ("run[1]", 6), ("run*", 3)):
        write_parquet(tmp_path / "written.parquet", number)
        (tmp_path / directory).mkdir()
        (tmp_path / "written.parquet").rename(tmp_path / directory / "train.parquet")
        dataset = load_dataset("huggingface", seed=1, options={"path": str(tmp_path / directory)})
        assert len(dataset) == number
        assert dataset.class_names == ("cat", "dog", "eel")


def splits_of(path: Path) -> str:
    return message("huggingface", path=str(path), splits=["none"]).partition("the data set has ")[2]


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["data/train-00000-of-00002", "data/train-00001-of-00002", "data/test-00000-of-00001"], "test, train"),
        (["en/train-00000-of-00001-a09b74b3ef9c3b56", "fr/train-00000-of-00001"], "train"),
        (["cifar10-train", "cifar10-test"], "cifar10-test, cifar10-train"),
        (["default/train/0000", "default/test/0000"], "test, train"),
        (["train/data-00000-of-00001", "test/data-00000-of-00001"], "test, train"),
        (["train", ".cache/old", "copy/.old"], "train"),
    ],
)
def test_the_layouts_of_the_hub_and_of_the_library_have_the_splits_they_mean(
    files: list[str], splits: str, tmp_path: Path
) -> None:
    for file in files:
        write_parquet(tmp_path / f"{file}.parquet", 2)
    assert splits_of(tmp_path) == splits


def test_what_the_librarys_transformations_leave_is_not_read_again(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"image": encoded(4, 8, 8), "label": [0, 1, 0, 1]})
    for name in ("train", "cache-1b2d"):
        table.save_to_disk(str(tmp_path / "saved"))
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "saved" / "data-00000-of-00001.arrow").rename(tmp_path / "files" / f"{name}.arrow")
    assert splits_of(tmp_path / "files") == "train"


def test_splits_that_cannot_be_pooled_are_one_line(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", 4)
    datasets.Dataset.from_dict({"image": encoded(2, 8, 8)}).to_parquet(str(tmp_path / "test.parquet"))
    told = message("huggingface", path=str(tmp_path))
    assert "the splits test, train have different columns, which cannot be pooled: choose among them with" in told
    assert len(load_dataset("huggingface", seed=1, options={"path": str(tmp_path), "splits": ["train"]})) == 4


def test_a_data_set_without_splits_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": []}')
    assert "the data set has no splits" in message("huggingface", path=str(tmp_path))


def test_a_directory_with_the_name_of_a_data_set_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(monkeypatch, {})
    monkeypatch.chdir(tmp_path)
    for name in ("someone/birds", "uoft-cs/cifar10"):
        (tmp_path / name).mkdir(parents=True)
    told = message("huggingface", name="someone/birds", hub=True)
    assert f"'someone/birds' is also a directory here, {tmp_path / 'someone/birds'}" in told
    assert "is also a directory here" in message("cifar10", hub=True)
    assert hub.asked == []


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "femnist"])
def test_a_path_that_would_not_be_read_is_told(name: str) -> None:
    assert "data.options.path is not read where data.options.hub is true, got 'x'" in message(name, path="x", hub=True)


def test_what_the_library_saved_is_read(tmp_path: Path) -> None:
    columns = {"image": encoded(4, 8, 8), "label": ["b", "a", "b", "a"]}
    table = datasets.Dataset.from_dict(columns)
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(tmp_path / "two"))
    dataset = load_dataset("huggingface", seed=1, options={"path": str(tmp_path / "one"), "channels": "grey"})
    assert dataset.inputs.shape == (4, 1, 8, 8)
    assert dataset.targets.tolist() == [1, 0, 1, 0]
    assert dataset.class_names == ("a", "b")
    assert len(load_dataset("huggingface", seed=1, options={"path": str(tmp_path / "two")})) == 8


def test_nothing_is_left_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_parquet(tmp_path / "files" / "train.parquet")
    load_dataset("huggingface", seed=1, options={"path": str(tmp_path / "files")})
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "femnist", "huggingface"])
def test_nothing_is_asked_of_the_hub_unless_the_user_says_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(monkeypatch, {})
    options = {"name": "someone/birds"} if name == "huggingface" else {"path": str(tmp_path)}
    assert "data.options.hub to true" in message(name, **options)
    assert hub.asked == []


def test_cifar10_comes_from_the_hub_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {
        split: {"img": encoded(n, 32, 32, 3, seed=n), "label": [i % 10 for i in range(n)]}
        for split, n in (("test", 3), ("train", 10))
    }
    hub = FakeHub(monkeypatch, splits)
    dataset = load_dataset("cifar10", seed=1, options={"hub": True})
    assert hub.asked == [("uoft-cs/cifar10", None, None)]
    assert dataset.inputs.shape == (13, 3, 32, 32)
    assert dataset.targets.tolist() == [*range(10), 0, 1, 2]
    assert len(load_dataset("cifar10", seed=1, options={"hub": True, "part": "test"})) == 3


@pytest.mark.parametrize(("coarse", "labels"), [(False, [9, 8, 7]), (True, [0, 1, 0])])
def test_cifar100_comes_from_the_hub_with_either_label(
    coarse: bool, labels: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"img": encoded(3, 32, 32, 3), "fine_label": [9, 8, 7], "coarse_label": [0, 1, 0]}
    hub = FakeHub(monkeypatch, {"train": columns})
    dataset = load_dataset("cifar100", seed=1, options={"hub": True, "coarse_labels": coarse, "part": "train"})
    assert hub.asked == [("uoft-cs/cifar100", None, None)]
    assert dataset.targets.tolist() == labels


@pytest.mark.parametrize(("max_writers", "groups"), [(None, [1, 0, 1, 2]), (2, [1, 0, 1])])
def test_femnist_comes_from_the_hub_with_its_writers(
    max_writers: int | None, groups: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"image": encoded(4, 28, 28), "writer_id": ["w5", "w1", "w5", "w9"], "character": [61, 0, 3, 4]}
    hub = FakeHub(monkeypatch, {"train": columns})
    dataset = load_dataset("femnist", seed=1, options={"hub": True, "max_writers": max_writers})
    assert hub.asked == [("flwrlabs/femnist", None, None)]
    assert dataset.inputs.shape == (len(groups), 1, 28, 28)
    assert dataset.groups is not None
    assert dataset.groups.tolist() == groups


def test_any_name_and_columns_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(monkeypatch, {"all": {"photo": encoded(3, 6, 6, 3), "kind": ["x", "y", "x"], "who": [4, 2, 4]}})
    options = {"name": "someone/birds", "subset": "small", "revision": "v1", "hub": True, "image": "photo",
               "label": "kind", "group": "who"}  # fmt: skip
    dataset = load_dataset("huggingface", seed=1, options=options)
    assert hub.asked == [("someone/birds", "small", "v1")]
    assert dataset.targets.tolist() == [0, 1, 0]
    assert dataset.groups is not None
    assert dataset.groups.tolist() == [1, 0, 1]


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, subset: str | None, *, revision: str | None) -> None:
        raise ConnectionError("no route\nto it")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    told = message("cifar10", hub=True)
    assert told == "cifar10: the Hugging Face hub did not give 'uoft-cs/cifar10': ConnectionError: no route to it"


def test_a_missing_package_says_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'spatl[data]'" in message("cifar10", hub=True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "set data.options.path to a local directory, or data.options.name and data.options.hub: true"),
        ({"path": "x", "name": "someone/birds"}, "got path='x' and name='someone/birds'"),
        ({"name": "pandas", "hub": True}, "name must be owner/name, as the hub shows it, got 'pandas'"),
        ({"name": "hf://datasets/a", "hub": True}, "name must be owner/name"),
        ({"name": "../birds", "hub": True}, "name must be owner/name"),
        ({"path": "x", "channels": "rgb"}, "channels must be colour or grey, got 'rgb'"),
        ({"path": "x", "splits": "train"}, "splits must be a list of names, e.g. [train, test], got 'train'"),
        ({"path": "x", "group": 3}, "group must be a text, got 3"),
        (
            {"path": "x", "subset": "small"},
            "subset goes with data.options.name, a data set of the hub, got subset='small'",
        ),
        ({"path": "x", "revision": "v1"}, "revision goes with data.options.name, a data set of the hub"),
        (
            {"path": "x", "hub": True},
            "data set of the hub, got hub=True and path='x'",
        ),
        ({"name": "someone/birds", "revision": 1}, "revision must be a text, got 1"),
        ({"path": "x", "hub": 1}, "hub must be true or false, got 1"),
        ({"path": "x", "image_size": 0}, "image_size must be a whole number in [1, 4096], got 0"),
    ],
)
def test_options_that_do_not_fit_are_told(options: dict[str, object], told: str) -> None:
    assert told in message("huggingface", **options)


def test_a_directory_that_is_not_there_or_empty_is_told(tmp_path: Path) -> None:
    assert f"no directory {tmp_path / 'x'}" in message("huggingface", path=str(tmp_path / "x"))
    assert f"no .parquet or .arrow files in {tmp_path}" in message("huggingface", path=str(tmp_path))


def test_a_truncated_parquet_file_is_one_line(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet")
    content = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(content[: len(content) // 2])
    assert f"cannot read {tmp_path}" in message("huggingface", path=str(tmp_path))


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"img": [1], "label": [0]}, "there is no column 'image'; the table has img, label: set data.options.image"),
        ({"image": [1, 2], "label": [0, 1]}, "column 'image' does not hold encoded images"),
        ({"image": [{"bytes": None, "path": None}] * 2, "label": [0, 1]}, "row 0 has no image in column 'image'"),
        ({"image": [{"bytes": b"no", "path": None}] * 2, "label": [0, 1]}, "row 0 is not an image that can be read"),
        ({"image": [{"bytes": b"no", "path": None}] * 2, "label": [0, None]}, "must hold one whole number or text"),
        ({"image": [{"bytes": b"no", "path": None}] * 2, "label": [0.5, 1.0]}, "got 0.5 for example 0, one of 1"),
        ({"image": [{"bytes": b"no", "path": None}] * 2, "label": [[0], [1, 2]]}, "must hold one whole number or text"),
        ({"image": [{"bytes": b"no", "path": None}] * 2, "label": [0, 3 * 10**9]}, "got 3000000000: are these ids?"),
    ],
)
def test_a_column_that_does_not_fit_is_named(
    columns: dict[str, list[Any]], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeHub(monkeypatch, {"train": columns})
    assert told in message("huggingface", name="someone/birds", hub=True)


@pytest.mark.parametrize(
    ("column", "labels", "names"),
    [
        ([1, 3, 2], [0, 2, 1], ("1", "2", "3")),
        ([0.0, 9.0, 0.0], [0, 1, 0], ("0", "9")),
        ([True, False, True], [1, 0, 1], ("0", "1")),
        (["10", "9", "10"], [1, 0, 1], ("9", "10")),
    ],
)
def test_a_class_is_made_of_each_label_of_a_column(
    column: list[Any], labels: list[int], names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeHub(monkeypatch, {"train": {"image": encoded(3, 8, 8), "label": column}})
    dataset = load_dataset("huggingface", seed=1, options={"name": "someone/birds", "hub": True})
    assert (dataset.targets.tolist(), dataset.class_names) == (labels, names)


def test_examples_without_a_label_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeHub(monkeypatch, {"test": {"image": encoded(3, 8, 8), "label": [0, -1, -1]}})
    told = message("huggingface", name="someone/birds", hub=True)
    assert "labels must be 0 or more, got -1 and others below 0, 2 in all: leave out examples without a label" in told
