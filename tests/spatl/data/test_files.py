"""Images of the user's own."""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spatl.data import load_dataset
from spatl.data.images import standardise, standardise_values
from tests.support.formats import png, random_pixels, write_folder
from tests.support.refusals import message


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    write_folder(tmp_path, ("cat", "dog", "eel"))
    (tmp_path / "notes.txt").write_text("not a class")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    dataset = load_dataset("folder", seed=1, options={"path": str(tmp_path)})
    pixels = random_pixels(9, 8, 8, 3).transpose(0, 3, 1, 2)
    assert dataset.inputs.equal(torch.from_numpy(standardise(pixels)[0]))
    assert dataset.targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert dataset.class_names == ("cat", "dog", "eel")


def test_what_lies_below_a_hidden_directory_is_passed_over(tmp_path: Path) -> None:
    write_folder(tmp_path)
    hidden = tmp_path / "cat" / ".ipynb_checkpoints" / "deeper" / "000-checkpoint.png"
    hidden.parent.mkdir(parents=True)
    hidden.write_bytes((tmp_path / "cat" / "000.png").read_bytes())
    assert len(load_dataset("folder", seed=1, options={"path": str(tmp_path)})) == 6


def test_a_hidden_directory_above_the_folder_does_not_hide_it(tmp_path: Path) -> None:
    write_folder(tmp_path / ".data")
    assert len(load_dataset("folder", seed=1, options={"path": str(tmp_path / ".data")})) == 6


def test_a_folder_is_resized_and_converted(tmp_path: Path) -> None:
    write_folder(tmp_path)
    dataset = load_dataset("folder", seed=1, options={"path": str(tmp_path), "channels": "grey", "image_size": 5})
    assert dataset.inputs.shape == (6, 1, 5, 5)


def test_a_folder_that_does_not_fit_says_what_is_expected(tmp_path: Path) -> None:
    assert message("folder") == (
        "folder: data.options.path must name a directory with one subfolder of images per class, got None"
    )
    assert f"no directory {tmp_path / 'x'}" in message("folder", path=str(tmp_path / "x"))
    assert "one per class, got files of no kind at all" in message("folder", path=str(tmp_path))
    (tmp_path / "cat.npy").touch()
    assert "one per class, got files of .npy" in message("folder", path=str(tmp_path))
    (tmp_path / "cat.png").touch()
    assert "one per class, got 1 images in no folder" in message("folder", path=str(tmp_path))
    assert "channels must be colour or grey, got 'rgb'" in message("folder", path=str(tmp_path), channels="rgb")
    assert "image_size must be a whole number" in message("folder", path=str(tmp_path), image_size=0)


def test_a_broken_image_in_a_folder_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "dog" / "004.png").write_bytes(png(random_pixels(1, 8, 8, 3)[0])[:50])
    assert str(tmp_path / "dog" / "004.png") in message("folder", path=str(tmp_path))


def write_arrays(file: Path, **changes: Any) -> str:
    arrays = {"images": random_pixels(6, 3, 5, 5), "labels": np.arange(6) % 3} | changes
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    return str(file)


def one_bad_image() -> Any:
    images = np.ones((6, 5, 5), np.float32)
    images[4, 2, 3] = np.nan
    return images


def load_npz(path: str, **options: object):
    return load_dataset("npz", seed=1, options={"path": path, **options})


def test_8_bit_arrays_are_standardised_by_counts(tmp_path: Path) -> None:
    dataset = load_npz(write_arrays(tmp_path / "a.npz", groups=np.array(["b", "a"] * 3)))
    assert dataset.inputs.equal(torch.from_numpy(standardise(random_pixels(6, 3, 5, 5))[0]))
    assert dataset.targets.tolist() == [0, 1, 2, 0, 1, 2]
    assert dataset.groups.tolist() == [1, 0] * 3
    assert dataset.num_classes == 3


def test_floating_point_arrays_are_standardised_too(tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(5, 2, (6, 4, 4))
    dataset = load_npz(write_arrays(tmp_path / "a.npz", images=images, labels=np.arange(6, dtype=np.uint8) % 2))
    assert dataset.inputs.equal(torch.from_numpy(standardise_values(images[:, None])[0]))
    assert dataset.groups is None


def test_classes_without_examples_can_be_announced(tmp_path: Path) -> None:
    assert load_npz(write_arrays(tmp_path / "a.npz"), num_classes=10).num_classes == 10


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": None}, "x_train and y_train with those of other splits, got images"),
        (
            {"images": None},
            "must hold the arrays images and labels, or x_train and y_train with those of other splits, got labels",
        ),
        ({"images": np.zeros((6, 5), np.uint8)}, "images must be uint8 or floating point, [N, H, W]"),
        ({"images": np.zeros((0, 5, 5), np.uint8)}, "no empty dimension, got uint8 [0, 5, 5]"),
        ({"images": np.zeros((6, 5, 5), np.int32)}, "got int32 [6, 5, 5]"),
        (
            {"images": np.full((6, 5, 5), np.inf)},
            "images must be finite and at most 1e+30 in size, got 6 of 6 examples",
        ),
        ({"images": np.full((6, 5, 5), np.nan)}, "that are not, the first of them example 0, which holds nan"),
        ({"images": np.linspace(0, 1e200, 150).reshape(6, 5, 5)}, "the first of them example 0, which holds 6.7"),
        ({"images": one_bad_image()}, "got 1 of 6 examples that are not, the first of them example 4, which holds nan"),
        ({"labels": np.arange(5)}, "labels must be whole numbers or texts [6], one per image, got int64 [5]"),
        ({"labels": np.arange(6) / 2}, "or texts, one per example, got 0.5 for example 1, one of 3 that have none"),
        ({"labels": np.eye(6)}, "got float64 [6, 6]; of one-hot rows take values.argmax(1)"),
        ({"labels": np.array([0, 1, 2, 0, 1, 3 * 10**9])}, "below 1000000, got 3000000000: are these ids?"),
        ({"labels": np.array([0, 1, 2, 0, 1, 2**63], np.uint64)}, "got 9223372036854775808: are these ids?"),
        ({"labels": np.arange(6) - 1}, "labels must be 0 or more, got -1 and others below 0, 1 in all: leave out"),
        ({"groups": np.arange(5)}, "groups must be whole numbers or texts [6], one per image, got int64 [5]"),
    ],
)
def test_an_array_that_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    assert told in message("npz", path=write_arrays(tmp_path / "a.npz", **changes))


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    path = write_arrays(tmp_path / "a.npz", labels=np.array([print] * 6, dtype=object))
    assert "holds Python objects, which are not read, since they could run code" in message("npz", path=path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x80\x04N.", b"text"])
def test_a_file_of_another_kind_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    assert "not a file that numpy.savez wrote" in message("npz", path=str(tmp_path / "a.npz"))


def changed_zip(file: Path, *, local: int, central: int, value: int) -> str:
    """The file with one byte of each member's local and central header set to a value."""
    content = bytearray(file.read_bytes())
    for signature, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        for found in re.finditer(re.escape(signature), bytes(content)):
            content[found.start() + offset] = value
    file.write_bytes(content)
    return str(file)


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ({"local": 6, "central": 8, "value": 1}, "is encrypted"),
        ({"local": 8, "central": 10, "value": 97}, "compression method is not supported"),
    ],
)
def test_an_archive_that_cannot_be_unpacked_is_one_line(tmp_path: Path, place: dict[str, int], told: str) -> None:
    path = Path(write_arrays(tmp_path / "a.npz"))
    assert told in message("npz", path=changed_zip(path, **place))


def write_members(file: Path, content: bytes) -> str:
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("images.npy", "labels.npy"):
            archive.writestr(name, content)
    return str(file)


def test_members_that_are_no_arrays_are_one_line(tmp_path: Path) -> None:
    assert "is not in NumPy's format" in message("npz", path=write_members(tmp_path / "a.npz", b"junk"))


def test_an_array_that_claims_more_than_memory_holds_is_one_line(tmp_path: Path) -> None:
    header = io.BytesIO()
    claim = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 1000, 1000)}
    np.lib.format.write_array_header_1_0(header, claim)
    told = message("npz", path=write_members(tmp_path / "a.npz", header.getvalue()))
    assert f"{tmp_path / 'a.npz'} does not fit in memory, or is damaged: Unable to allocate 909. TiB" in told


def test_a_truncated_or_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = Path(write_arrays(tmp_path / "a.npz"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "or it is truncated" in message("npz", path=str(path))
    middle = len(content) // 4
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    assert "or it is truncated" in message("npz", path=str(path))


def test_a_single_array_is_not_enough(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    assert "a single array" in message("npz", path=str(tmp_path / "a.npy"))


def test_a_file_that_is_not_there_says_how_to_write_it(tmp_path: Path) -> None:
    assert f"no file {tmp_path / 'a.npz'}; write it with numpy.savez" in message("npz", path=str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        (np.arange(6) % 3 + 1, [0, 1, 2, 0, 1, 2], ("1", "2", "3")),
        (np.array([0, 1, 2, 0, 1, 999]), [0, 1, 2, 0, 1, 3], ("0", "1", "2", "999")),
        (np.array(["dog", "cat"] * 3), [1, 0, 1, 0, 1, 0], ("cat", "dog")),
        (np.arange(6)[:, None] % 2, [0, 1, 0, 1, 0, 1], ("0", "1")),
    ],
)
def test_a_class_is_made_of_each_label(tmp_path: Path, labels: Any, numbers: list[int], names: tuple[str, ...]) -> None:
    dataset = load_npz(write_arrays(tmp_path / "a.npz", labels=labels))
    assert (dataset.targets.tolist(), dataset.class_names, dataset.num_classes) == (numbers, names, len(names))


def test_announced_classes_without_an_example_are_named(tmp_path: Path) -> None:
    dataset = load_npz(write_arrays(tmp_path / "a.npz"), num_classes=5)
    assert dataset.remarks() == ("npz: 2 of 5 classes have no example: 3, 4",)


@pytest.mark.parametrize(
    ("shape", "read", "guessed"),
    [
        ((28, 28), (1, 28, 28), None),
        ((1, 28, 28), (1, 28, 28), None),
        ((3, 32, 32), (3, 32, 32), None),
        ((3, 8, 12), (3, 8, 12), None),
        ((2, 9, 9), (2, 9, 9), None),
        ((5, 7, 9), (5, 7, 9), None),
        ((28, 28, 1), (1, 28, 28), "28 x 28, channels: 1 (channels-last)"),
        ((32, 32, 3), (3, 32, 32), "32 x 32, channels: 3 (channels-last)"),
        ((8, 12, 3), (3, 8, 12), "8 x 12, channels: 3 (channels-last)"),
        ((9, 9, 13), (13, 9, 9), "9 x 9, channels: 13 (channels-last)"),
        ((64, 4, 4), (64, 4, 4), "4 x 4, channels: 64 (channels-first)"),
        ((40, 1, 1), (40, 1, 1), "1 x 1, channels: 40 (channels-first)"),
        ((3, 3, 3), (3, 3, 3), "3 x 3, channels: 3 (channels-first)"),
        ((16, 16, 16), (16, 16, 16), "16 x 16, channels: 16 (channels-first)"),
    ],
)
def test_the_likelier_layout_is_read_and_a_guess_is_told(
    tmp_path: Path, shape: tuple[int, ...], read: tuple[int, ...], guessed: str | None
) -> None:
    images = random_pixels(6, *shape)
    dataset = load_npz(write_arrays(tmp_path / "a.npz", images=images))
    told = f"npz: the array images {[6, *shape]} is read as images of {guessed}: set data.options.layout"
    assert dataset.inputs.shape == (6, *read)
    assert [remark.startswith(told) for remark in dataset.remarks()] == ([True] if guessed else [])
    first = images.reshape(6, 1, *shape) if len(shape) == 2 else images
    last = guessed is not None and "last" in guessed
    assert dataset.inputs.equal(torch.from_numpy(standardise(first.transpose(0, 3, 1, 2) if last else first)[0]))


@pytest.mark.parametrize(("layout", "read"), [("channels-first", (16, 4, 3)), ("channels-last", (3, 16, 4))])
def test_the_layout_can_be_said(tmp_path: Path, layout: str, read: tuple[int, ...]) -> None:
    """And then nothing is guessed, whatever the shape."""
    path = write_arrays(tmp_path / "a.npz", images=random_pixels(6, 16, 4, 3))
    dataset = load_npz(path, layout=layout)
    assert dataset.inputs.shape == (6, *read)
    assert dataset.remarks() == ()
    assert "layout must be auto or channels-first or channels-last, got 'NHWC'" in message(
        "npz", path=path, layout="NHWC"
    )


@pytest.mark.parametrize("names", ["x_{0} y_{0}", "{0}_images {0}_labels"])
def test_arrays_by_split_keep_their_split(tmp_path: Path, names: str) -> None:
    arrays = {}
    for split, number in (("test", 2), ("val", 1), ("train", 4)):
        images, labels = names.format(split).split()
        arrays[images], arrays[labels] = random_pixels(number, 9, 9, 3, seed=number), np.arange(number)[:, None] % 2
    np.savez(tmp_path / "a.npz", **arrays)
    dataset = load_npz(str(tmp_path / "a.npz"))
    assert dataset.inputs.shape == (7, 3, 9, 9)
    assert dataset.splits.tolist() == [0, 0, 0, 0, 1, 2, 2]
    assert dataset.targets.tolist() == [0, 1, 0, 1, 0, 0, 1]
    assert (
        "npz: the splits are kept as they are in a.npz: 4 of train, 1 of validation, 2 of test (data.options.pool)"
        in (dataset.remarks())
    )
    assert load_npz(str(tmp_path / "a.npz"), pool=True).splits is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"x_train": None}, "or x_train and y_train with those of other splits, got y_train, x_test, y_test"),
        ({"x_test": random_pixels(2, 5, 5)}, "the images of all splits must be uint8 [4, 9, 9], got uint8 [2, 5, 5]"),
        ({"y_test": np.arange(3)}, "labels must be whole numbers or texts [2], one per image, got int64 [3]"),
        ({"y_test": np.arange(2)[:, None]}, "the labels of all splits must be alike, e.g. [4], got int64 [2, 1]"),
    ],
)
def test_arrays_by_split_that_do_not_fit_are_named(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    arrays = {"x_train": random_pixels(4, 9, 9), "y_train": np.arange(4) % 2, "x_test": random_pixels(2, 9, 9),
              "y_test": np.arange(2)} | changes  # fmt: skip
    np.savez(tmp_path / "a.npz", **{name: array for name, array in arrays.items() if array is not None})
    assert told in message("npz", path=str(tmp_path / "a.npz"))
