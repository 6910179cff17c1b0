"""Data sets by name."""

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from spatl.data import DATASETS, load_dataset
from spatl.data.sources import Dataset, DatasetEntry
from spatl.errors import DataError
from tests.support.formats import (
    leaf_user,
    random_pixels,
    write_cifar10,
    write_cifar100,
    write_folder,
    write_idx,
    write_leaf,
    write_parquet,
)
from tests.support.refusals import message


def small(name: str, directory: Path) -> dict[str, Any]:
    """Return options under which a data set is small, having written its files where it needs any."""
    file = directory / "arrays.npz"
    match name:
        case "digits":
            return {}
        case "synthetic":
            return {"num_examples": 200}
        case "cifar10":
            write_cifar10(directory)
        case "cifar100":
            write_cifar100(directory)
        case "femnist":
            write_leaf(directory / "a.json", {"w0": leaf_user(5, 0), "w1": leaf_user(5, 1)})
        case "folder":
            write_folder(directory)
        case "huggingface":
            write_parquet(directory / "train.parquet")
        case "idx":
            write_idx(directory)
        case "npz":
            np.savez(file, images=random_pixels(60, 8, 8), labels=np.arange(60) % 2)
            return {"path": str(file)}
    return {"path": str(directory)}


@pytest.mark.parametrize("name", [name for name in DATASETS if name not in ("table", "in-memory")])
def test_every_data_set_of_images_is_standardised_and_says_its_name(name: str, tmp_path: Path) -> None:
    dataset = load_dataset(name, seed=1, options=small(name, tmp_path))
    assert dataset.name == name
    assert abs(float(dataset.inputs.mean())) < 1e-4
    assert float(dataset.inputs.std()) == pytest.approx(1, abs=1e-3)


def test_digits_are_all_of_scikit_learns_digits() -> None:
    dataset, bunch = load_dataset("digits", seed=1), load_digits()
    expected = torch.from_numpy(bunch.images).float().unsqueeze(1)
    assert dataset.inputs.equal((expected - expected.mean()) / expected.std())
    assert dataset.targets.tolist() == bunch.target.tolist()


def test_digits_are_the_same_for_every_seed() -> None:
    assert load_dataset("digits", seed=1).inputs.equal(load_dataset("digits", seed=2).inputs)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spatl.data.sources.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"needs scikit-learn: pip install 'spatl\[simulation\]'"):
        load_dataset("digits", seed=1)


def test_an_unknown_name_is_answered_with_the_known_ones_and_the_closest() -> None:
    with pytest.raises(DataError, match=r"'digit' \(did you mean 'digits'\?\); known: cifar10, cifar100, digits"):
        load_dataset("digit", seed=1)


def test_an_unknown_option_is_answered_with_those_the_loader_takes() -> None:
    with pytest.raises(
        DataError, match=r"'synthetic' has no option 'dificulty' \(did you mean 'difficulty'\?\); it takes"
    ):
        load_dataset("synthetic", seed=1, options={"dificulty": 0.1})
    with pytest.raises(DataError, match=r"'digits' has no option 'num_examples'; it takes none"):
        load_dataset("digits", seed=1, options={"num_examples": 10})


def test_an_entry_lists_its_options_with_their_defaults() -> None:
    assert DATASETS["digits"].options == {}
    assert DATASETS["synthetic"].options == {
        "num_examples": 6000,
        "num_classes": 10,
        "image_size": 32,
        "difficulty": 0.5,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"difficulty": 1.3}, r"difficulty must be a number in \[0, 1\], got 1.3"),
        ({"difficulty": "hard"}, r"difficulty must be a number in \[0, 1\], got 'hard'"),
        ({"difficulty": float("nan")}, r"difficulty must be a number in \[0, 1\], got nan"),
        ({"num_examples": 9}, r"num_examples must be a whole number in \[10, 200000\], got 9"),
        ({"num_examples": 6e3}, r"num_examples must be a whole number in \[10, 200000\], got 6000.0"),
        ({"num_classes": 1}, r"num_classes must be a whole number in \[2, 100\], got 1"),
        ({"num_classes": True}, r"num_classes must be a whole number in \[2, 100\], got True"),
        ({"image_size": 4}, r"image_size must be a whole number in \[8, 128\], got 4"),
    ],
)
def test_a_bad_value_is_answered_with_the_allowed_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"synthetic: {message}"):
        load_dataset("synthetic", seed=1, options=options)


@pytest.mark.parametrize("name", ["cifar10", "femnist", "folder", "huggingface", "idx", "npz"])
def test_a_path_that_the_system_refuses_is_one_line(name: str) -> None:
    told = message(name, path="x" * 300)
    assert told.startswith(f"{name}: cannot read ")
    assert told.endswith("File name too long")


def test_a_directory_that_must_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    assert message("folder", path=str(tmp_path)) == f"folder: cannot read {tmp_path}: Permission denied"


def test_a_file_that_must_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    options = small("npz", tmp_path)
    monkeypatch.setattr(Path, "open", refuse)
    assert message("npz", **options) == f"npz: cannot read {options['path']}: Permission denied"


def test_images_that_do_not_fit_in_memory_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seed: int) -> None:
        raise MemoryError

    monkeypatch.setitem(DATASETS, "digits", replace(DATASETS["digits"], loader=refuse))
    assert message("digits") == "digits: the examples do not fit in memory: take fewer or smaller ones"


def test_a_loader_of_the_users_that_fails_keeps_its_type_line_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(seed: int) -> Dataset:
        raise KeyError("pixels")

    monkeypatch.setitem(DATASETS, "mine", DatasetEntry(loader=mine, description="", source=""))
    told = r"^mine: its loader failed: KeyError: 'pixels' \(test_sources\.py:\d+, in mine\)$"
    with pytest.raises(DataError, match=told):
        load_dataset("mine", seed=1)
