"""Files of MNIST's format."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from spatl.data import load_dataset
from spatl.data.dataset import Dataset
from spatl.data.idx_files import read_idx
from spatl.data.images import standardise
from spatl.errors import DataError
from tests.support.formats import idx_bytes, write_idx
from tests.support.refusals import message

KINDS = st.sampled_from(["u1", "i1", "i2", "i4", "f4", "f8"])


def loaded(path: Path, seed: int = 1, **options: Any) -> Dataset:
    return load_dataset("idx", seed=seed, options={"path": str(path), **options})


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(values=KINDS.flatmap(lambda kind: arrays(kind, array_shapes(max_dims=4, max_side=4))), packed=st.booleans())
def test_what_is_written_is_read(values: np.ndarray[Any, Any], packed: bool, tmp_path_factory: Any) -> None:
    file = tmp_path_factory.getbasetemp() / "values"
    file.write_bytes(gzip.compress(idx_bytes(values)) if packed else idx_bytes(values))
    found = read_idx("idx", file)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), packed=st.booleans())
def test_damaged_files_are_answered_in_one_line_or_read_as_something_of_their_length(
    data: st.DataObject, packed: bool, tmp_path_factory: Any
) -> None:
    """Whatever byte is another one, and wherever the file ends."""
    content = bytearray(idx_bytes(np.arange(60, dtype=np.uint8).reshape(5, 3, 4)))
    content = bytearray(gzip.compress(content, mtime=0)) if packed else content
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[place:]
    file = tmp_path_factory.getbasetemp() / "damaged"
    file.write_bytes(content)
    told = ""
    try:
        assert read_idx("idx", file).nbytes <= 60
    except DataError as error:
        told = str(error)
    assert not told or ("\n" not in told and str(file) in told)


def test_a_header_that_promises_more_than_the_file_can_hold_takes_no_memory(tmp_path: Path) -> None:
    """2^32 - 1 images of as many rows, gzipped and not."""
    header = bytes([0, 0, 8, 3]) + b"\xff" * 8 + bytes([0, 0, 0, 1])
    for content in (header, gzip.compress(header)):
        (tmp_path / "huge").write_bytes(content)
        with pytest.raises(DataError, match="its header says 4294967295 x 4294967295 x 1 numbers"):
            read_idx("idx", tmp_path / "huge")


def test_the_official_test_set_stays_the_test_split(tmp_path: Path) -> None:
    pixels = write_idx(tmp_path)
    dataset = loaded(tmp_path)
    assert dataset.inputs.equal(torch.from_numpy(standardise(pixels[:, None])[0]))
    assert dataset.targets.equal(torch.cat([torch.arange(40) % 10, torch.arange(20) % 10]))
    assert dataset.splits is not None
    assert dataset.splits.tolist() == [0] * 40 + [2] * 20
    assert "40 of train, 20 of test" in dataset.notes[0]
    assert loaded(tmp_path, pool=True).splits is None


def test_images_of_emnist_are_turned_and_its_letters_counted_from_one(tmp_path: Path) -> None:
    """By the files' names; `transpose` says it otherwise."""
    pixels = write_idx(tmp_path, prefix="emnist-letters-", first=1)
    turned = loaded(tmp_path, first_label=1, classes=list("abcdefghij"))
    assert turned.inputs.equal(torch.from_numpy(standardise(pixels.swapaxes(1, 2)[:, None])[0]))
    assert turned.class_names == tuple("abcdefghij")
    assert turned.targets[:3].tolist() == [0, 1, 2]
    assert loaded(tmp_path, transpose=False).inputs.equal(turned.inputs.transpose(2, 3))


def test_of_several_sets_in_a_directory_one_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path, prefix="emnist-letters-")
    write_idx(tmp_path, num_train=30, prefix="emnist-digits-")
    assert "data.options.subset: emnist-digits, emnist-letters" in message("idx", path=str(tmp_path))
    assert len(loaded(tmp_path, subset="emnist-digits")) == 50
    assert "no set 'mnist'" in message("idx", path=str(tmp_path), subset="mnist")


def test_files_of_any_name_are_read_where_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "pixels").write_bytes(idx_bytes(np.arange(48, dtype="f4").reshape(3, 4, 4)))
    (tmp_path / "classes").write_bytes(idx_bytes(np.array([0, 1, 0], dtype="i4")))
    dataset = loaded(tmp_path, train_images="pixels", train_labels="classes")
    assert dataset.splits is None
    assert dataset.targets.tolist() == [0, 1, 0]


def test_a_subset_is_drawn_by_the_seed_alone(tmp_path: Path) -> None:
    write_idx(tmp_path)
    one, again, other = (loaded(tmp_path, seed, num_train=12, num_test=5) for seed in (1, 1, 2))
    assert len(one) == 17
    assert one.inputs.equal(again.inputs)
    assert not one.inputs.equal(other.inputs)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_train": 41}, "num_train must be at most 40"),
        ({"num_test": 0}, "num_test must be a whole number in [1, 4294967296], got 0"),
        ({"first_label": 1}, "labels must be 1 or more (data.options.first_label), got 0"),
        ({"classes": ["one"]}, "classes must be two names or more"),
        ({"classes": list("abcdefghi")}, "of 9 classes the labels must lie in [0, 9), got 9"),
        ({"transpose": "yes"}, "transpose must be true or false"),
        ({"test_images": "t10k-images-idx3-ubyte.gz"}, "train_images and train_labels must both name a file"),
        ({"train_images": "none", "train_labels": "none"}, "No such file"),
        ({"train_images": "train-labels-idx1-ubyte.gz", "train_labels": "train-labels-idx1-ubyte.gz"}, "these labels?"),
        (
            {"train_images": "train-images-idx3-ubyte.gz", "train_labels": "t10k-labels-idx1-ubyte.gz"},
            "one label for each of 40 images in train-images-idx3-ubyte.gz, got [20]",
        ),
    ],
)
def test_options_that_do_not_fit_are_answered_in_one_line(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    write_idx(tmp_path)
    answer = message("idx", path=str(tmp_path), **options)
    assert told in answer
    assert "\n" not in answer


def test_missing_files_say_which_are_expected(tmp_path: Path) -> None:
    assert "train-images-idx3-ubyte, train-labels-idx1-ubyte" in message("idx", path=str(tmp_path))
    assert "no directory" in message("idx", path=str(tmp_path / "nowhere"))
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    assert "both or none of the test set" in message("idx", path=str(tmp_path))
