"""FEMNIST in LEAF's files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from spatl.data import load_dataset
from spatl.data.images import standardise
from tests.support.formats import leaf_user, random_pixels, write_leaf
from tests.support.refusals import message


def load(path: Path, **options: object):
    return load_dataset("femnist", seed=1, options={"path": str(path), **options})


def test_the_values_are_8_bit_pixels_and_the_users_are_groups(tmp_path: Path) -> None:
    write_leaf(tmp_path / "a.json", {"f01": leaf_user(3, 1), "f02": leaf_user(2, 2)})
    write_leaf(tmp_path / "b.json", {"f00": leaf_user(4, 3)})
    dataset = load(tmp_path)
    pixels = torch.cat([torch.from_numpy(random_pixels(n, 784, seed=s)) for n, s in ((3, 1), (2, 2), (4, 3))])
    assert dataset.inputs.equal(torch.from_numpy(standardise(pixels.reshape(-1, 1, 28, 28).numpy())[0]))
    assert dataset.targets.tolist() == [1, 2, 3, 2, 3, 3, 4, 5, 6]
    assert dataset.groups is not None
    assert dataset.groups.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert (dataset.num_classes, dataset.class_names[10], dataset.class_names[61]) == (62, "A", "z")


def test_a_writers_train_and_test_examples_are_one_group(tmp_path: Path) -> None:
    write_leaf(tmp_path / "train" / "a.json", {"w0": leaf_user(3, 0), "w1": leaf_user(2, 1)})
    write_leaf(tmp_path / "test" / "a.json", {"w0": leaf_user(1, 2), "w1": leaf_user(2, 3)})
    assert load(tmp_path).groups.tolist() == [0, 0, 0, 1, 1, 0, 1, 1]


def test_no_more_writers_are_kept_than_asked_for(tmp_path: Path) -> None:
    for folder, n in (("train", 2), ("test", 1)):
        write_leaf(tmp_path / folder / "a.json", {"w0": leaf_user(n, 0), "w1": leaf_user(n, 1)})
        write_leaf(tmp_path / folder / "b.json", {"w2": leaf_user(n, 2), "w3": leaf_user(n, 3)})
    assert load(tmp_path, max_writers=3).groups.tolist() == [0, 0, 1, 1, 2, 2, 0, 1, 2]
    assert load(tmp_path, max_writers=1).groups.tolist() == [0, 0, 0]
    assert load(tmp_path, max_writers=9).groups.unique().tolist() == [0, 1, 2, 3]


def test_what_is_not_there_says_what_to_make_and_where_to_put_it(tmp_path: Path) -> None:
    told = message("femnist", path=str(tmp_path / "femnist"))
    assert f"no JSON files in {tmp_path / 'femnist'}" in told
    assert "LEAF" in told
    assert "data.options.hub to true" in told


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    write_leaf(tmp_path / "a.json", {"w0": leaf_user(2, 0)})
    content = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(content[: len(content) // 2])
    assert f"{tmp_path / 'a.json'} is not JSON, or truncated" in message("femnist", path=str(tmp_path))


@pytest.mark.parametrize("content", [[], {}, {"users": ["w"]}, {"users": ["w"], "user_data": {}}, 3,
                                     {"users": [5], "user_data": [1]},
                                     {"users": ["w"], "user_data": {"w": {"x": []}}}])  # fmt: skip
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: Any) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert "must hold users and user_data" in message("femnist", path=str(tmp_path))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"x": [[0.5] * 783]}, "got x [1, 783] and y [1]"),
        ({"x": [[0.5] * 784] * 2}, "got x [2, 784] and y [1]"),
        ({"x": [[255] * 784]}, "got values from 255 to 255"),
        ({"x": [[float("nan")] * 784]}, "got values from nan to nan"),
        ({"y": [62]}, "got labels from 62 to 62"),
        ({"y": [0.5]}, "got labels from 0.5 to 0.5"),
        ({"y": ["a"]}, "rows of different lengths, or texts"),
        ({"x": [[0.5], [0.5, 0.5]]}, "rows of different lengths, or texts"),
    ],
)
def test_a_user_that_does_not_fit_is_named(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    write_leaf(tmp_path / "a.json", {"w0": leaf_user(1, 0), "w1": leaf_user(1, 1) | change})
    assert "user 'w1'" in message("femnist", path=str(tmp_path))
    assert told in message("femnist", path=str(tmp_path))


def test_a_user_who_is_listed_twice_is_not_read_twice(tmp_path: Path) -> None:
    content = {"users": ["w0", "w1", "w0"], "user_data": {"w0": leaf_user(2, 0), "w1": leaf_user(2, 1)}}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert f"{tmp_path / 'a.json'} lists user 'w0' twice" in message("femnist", path=str(tmp_path))


def test_files_without_examples_are_told(tmp_path: Path) -> None:
    write_leaf(tmp_path / "a.json", {"w0": {"x": [], "y": []}})
    assert "hold no examples" in message("femnist", path=str(tmp_path))


def test_max_writers_must_be_a_whole_number(tmp_path: Path) -> None:
    told = message("femnist", path=str(tmp_path), max_writers=0)
    assert told == "femnist: max_writers must be a whole number in [1, 1000000], got 0"
