"""CIFAR's binary files."""

import re
from pathlib import Path

import pytest
import torch

from spatl.data import load_dataset
from spatl.data.images import standardise
from tests.support.formats import CIFAR10_FILES, write_cifar10, write_cifar100
from tests.support.refusals import message


@pytest.mark.parametrize("folder", ["", "cifar-10-batches-bin"])
def test_all_files_are_pooled_in_order_with_their_labels(tmp_path: Path, folder: str) -> None:
    pixels = write_cifar10(tmp_path / folder)
    dataset = load_dataset("cifar10", seed=1, options={"path": str(tmp_path)})
    assert dataset.inputs.equal(torch.from_numpy(standardise(pixels)[0]))
    assert dataset.targets.equal(torch.arange(24) % 10)
    assert (dataset.name, dataset.num_classes, dataset.class_names) == ("cifar10", 10, tuple("0123456789"))


@pytest.mark.parametrize(("part", "rows"), [("train", slice(0, 20)), ("test", slice(20, 24))])
def test_a_part_is_its_files_alone(tmp_path: Path, part: str, rows: slice) -> None:
    pixels = write_cifar10(tmp_path)
    dataset = load_dataset("cifar10", seed=1, options={"path": str(tmp_path), "part": part})
    assert dataset.inputs.equal(torch.from_numpy(standardise(pixels[rows])[0]))


def test_the_names_beside_the_images_are_the_classes(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "batches.meta.txt").write_text("\n".join(f"class {i}" for i in range(10)) + "\n\n")
    dataset = load_dataset("cifar10", seed=1, options={"path": str(tmp_path)})
    assert dataset.class_names == tuple(f"class {i}" for i in range(10))


@pytest.mark.parametrize(("coarse", "num_classes"), [(False, 100), (True, 20)])
def test_the_hundred_classes_have_a_fine_and_a_coarse_label(tmp_path: Path, coarse: bool, num_classes: int) -> None:
    write_cifar100(tmp_path / "cifar-100-binary")
    dataset = load_dataset("cifar100", seed=1, options={"path": str(tmp_path), "coarse_labels": coarse})
    rows = torch.cat([torch.arange(100), torch.arange(20)])
    assert dataset.targets.equal(rows % num_classes)
    assert dataset.num_classes == num_classes
    assert dataset.inputs.shape == (120, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "archive"), [("cifar10", "cifar-10-binary.tar.gz"), ("cifar100", "cifar-100-binary.tar.gz")]
)
def test_what_is_not_there_says_what_to_download_and_where_to_put_it(tmp_path: Path, name: str, archive: str) -> None:
    told = message(name, path=str(tmp_path / "nowhere"))
    assert f"in {tmp_path / 'nowhere'}: download its binary version ({archive}) and unpack it there" in told
    assert "data.options.path" in told
    assert "data.options.hub to true" in told


@pytest.mark.parametrize(
    ("name", "marks"),
    [
        ("cifar10", ["data_batch_1", "cifar-10-batches-py/data_batch_1"]),
        ("cifar100", ["meta", "cifar-100-python/train"]),
    ],
)
def test_the_pickled_version_is_named_and_not_opened(tmp_path: Path, name: str, marks: list[str]) -> None:
    for position, mark in enumerate(marks):
        file = tmp_path / str(position) / mark
        file.parent.mkdir(parents=True)
        file.write_bytes(b"\x80\x04.")
        told = message(name, path=str(tmp_path / str(position)))
        assert "pickled Python version, which is never opened" in told
        assert "binary.tar.gz" in told


@pytest.mark.parametrize("num_bytes", [0, 3072, 4 * 3073 - 1])
def test_a_truncated_file_is_named(tmp_path: Path, num_bytes: int) -> None:
    write_cifar10(tmp_path)
    file = tmp_path / "data_batch_3.bin"
    file.write_bytes(file.read_bytes()[:num_bytes])
    told = message("cifar10", path=str(tmp_path))
    assert f"{file} must hold whole records of 3073 bytes, got {num_bytes} bytes: it is truncated" in told


@pytest.mark.parametrize("file", CIFAR10_FILES)
def test_a_missing_file_is_named(tmp_path: Path, file: str) -> None:
    write_cifar10(tmp_path)
    (tmp_path / file).unlink()
    assert f"cannot read {tmp_path / file} (No such file or directory)" in message("cifar10", path=str(tmp_path))


def test_a_label_out_of_range_says_the_file_is_another(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    file = tmp_path / "test_batch.bin"
    file.write_bytes(b"\x0a" + file.read_bytes()[1:])
    assert re.search("hold the label 10, but CIFAR-10 has 10 classes", message("cifar10", path=str(tmp_path)))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"part": "valid"}, "cifar10: part must be all or train or test, got 'valid'"),
        ({"hub": "yes"}, "cifar10: hub must be true or false, got 'yes'"),
        ({"path": 3}, "cifar10: data.options.path must name a directory, got 3"),
    ],
)
def test_a_bad_option_is_answered_with_what_is_allowed(options: dict[str, object], told: str) -> None:
    assert message("cifar10", **options) == told
