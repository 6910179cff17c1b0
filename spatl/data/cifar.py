"""CIFAR-10 and CIFAR-100 from the files of their binary version, or from the Hugging Face hub.

A file is records end to end: one label byte (CIFAR-100: a coarse one, then a fine one), then 3 x 32 x 32 bytes, the
red, the green and the blue plane row by row (Krizhevsky, 2009). The other version, for Python, is pickled, and pickled
files run code when they are opened: it is recognised and never read.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from spatl.data.checks import check_choice, check_path_is_read, check_switch, path_option
from spatl.data.dataset import Dataset
from spatl.data.hub import Columns, from_table, hub_table
from spatl.data.images import Pixels, standardise
from spatl.errors import DataError

_IMAGE_BYTES = 3 * 32 * 32
_DEFAULT_PATH = "data"
_PARTS = ("all", "train", "test")


@dataclass(frozen=True)
class _Labels:
    """Kind of label: its byte in a record, the number of classes, and the file of their names."""

    byte: int
    num_classes: int
    names_file: str
    hub_column: str


@dataclass(frozen=True)
class _Version:
    """Version of the data set: its files, its kinds of labels, and its name on the hub."""

    title: str
    archive: str
    folder: str
    files: dict[str, tuple[str, ...]]
    label_bytes: int
    hub_name: str
    pickled: tuple[str, ...]


_CIFAR10 = _Version(
    title="CIFAR-10",
    archive="cifar-10-binary.tar.gz",
    folder="cifar-10-batches-bin",
    files={"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)},
    label_bytes=1,
    hub_name="uoft-cs/cifar10",
    pickled=("cifar-10-batches-py", "data_batch_1"),
)
_CIFAR100 = _Version(
    title="CIFAR-100",
    archive="cifar-100-binary.tar.gz",
    folder="cifar-100-binary",
    files={"train": ("train.bin",), "test": ("test.bin",)},
    label_bytes=2,
    hub_name="uoft-cs/cifar100",
    pickled=("cifar-100-python", "meta"),
)
_CLASSES_10 = _Labels(0, 10, "batches.meta.txt", "label")
_FINE_100 = _Labels(1, 100, "fine_label_names.txt", "fine_label")
_COARSE_100 = _Labels(0, 20, "coarse_label_names.txt", "coarse_label")


def cifar10(seed: int, *, path: str = _DEFAULT_PATH, part: str = "all", hub: bool = False) -> Dataset:
    """Return CIFAR-10: 60,000 colour images `[3, 32, 32]` of 10 classes.

    Args:
        seed: Ignored; the images are fixed.
        path: The directory of the binary files, or the one that holds `cifar-10-batches-bin`.
        part: `train` (50,000 images), `test` (10,000), or `all`: every client splits off a test part of its own.
        hub: Whether to take the images from the Hugging Face hub, over the network, instead of the path.

    Raises:
        DataError: The files are not there, truncated or of another format, or the hub cannot be reached.
    """
    return _load("cifar10", _CIFAR10, _CLASSES_10, path=path, part=part, hub=hub)


def cifar100(
    seed: int, *, path: str = _DEFAULT_PATH, part: str = "all", coarse_labels: bool = False, hub: bool = False
) -> Dataset:
    """Return CIFAR-100: 60,000 colour images `[3, 32, 32]` of 100 classes.

    Args:
        seed: Ignored; the images are fixed.
        path: The directory of the binary files, or the one that holds `cifar-100-binary`.
        part: `train` (50,000 images), `test` (10,000), or `all`: every client splits off a test part of its own.
        coarse_labels: Whether the labels are the 20 superclasses of five classes each.
        hub: Whether to take the images from the Hugging Face hub, over the network, instead of the path.

    Raises:
        DataError: The files are not there, truncated or of another format, or the hub cannot be reached.
    """
    check_switch("cifar100", "coarse_labels", coarse_labels)
    labels = _COARSE_100 if coarse_labels else _FINE_100
    return _load("cifar100", _CIFAR100, labels, path=path, part=part, hub=hub)


def _load(name: str, version: _Version, labels: _Labels, *, path: str, part: str, hub: bool) -> Dataset:
    check_choice(name, "part", part, _PARTS)
    check_switch(name, "hub", hub)
    parts = ("train", "test") if part == "all" else (part,)
    if hub:
        check_path_is_read(name, path, default=_DEFAULT_PATH)
        table = hub_table(name, version.hub_name, splits=parts)
        return from_table(
            name, table, Columns("img", labels.hub_column), channels="colour", image_size=32,
            num_classes=labels.num_classes,
        )  # fmt: skip
    directory = _directory(name, version, path_option(name, path, expected="a directory"))
    records = np.concatenate(
        [_records(name, version, directory / file) for each in parts for file in version.files[each]]
    )
    found = records[:, labels.byte].astype(np.int64)
    if int(found.max()) >= labels.num_classes:
        raise DataError(
            f"{name}: the files in {directory} hold the label {found.max()}, but {version.title} has "
            f"{labels.num_classes} classes: they are damaged or of another data set"
        )
    pixels: Pixels = records[:, version.label_bytes :].reshape(-1, 3, 32, 32)
    images, normalisation = standardise(pixels)
    return Dataset(
        name,
        torch.from_numpy(images),
        torch.from_numpy(found),
        num_classes=labels.num_classes,
        class_names=_class_names(directory / labels.names_file, labels.num_classes),
        normalisation=normalisation,
        scale="channel",
    )


def _directory(name: str, version: _Version, path: Path) -> Path:
    """Return the directory that holds the files, or say what to download and where to put it."""
    for candidate in (path / version.folder, path):
        if any((candidate / file).is_file() for files in version.files.values() for file in files):
            return candidate
    for pickled in version.pickled:
        if (path / pickled).exists() or path.name == pickled:
            raise DataError(
                f"{name}: {path} holds the pickled Python version, which is never opened because that can run any "
                f"code; download the binary version ({version.archive}) and unpack it in {path}"
            )
    raise DataError(
        f"{name}: no {version.title} in {path}: download its binary version ({version.archive}) and unpack it there, "
        f"which makes {version.folder}; or name the directory in data.options.path, or set data.options.hub to true "
        "to use the Hugging Face hub"
    )


def _records(name: str, version: _Version, path: Path) -> NDArray[np.uint8]:
    record_bytes = version.label_bytes + _IMAGE_BYTES
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{name}: cannot read {path} ({error.strerror}); unpack {version.archive} again") from error
    if len(content) == 0 or len(content) % record_bytes:
        raise DataError(
            f"{name}: {path} must hold whole records of {record_bytes} bytes, got {len(content)} bytes: it is "
            f"truncated or of another format; download {version.archive} again"
        )
    return content.reshape(-1, record_bytes)


def _class_names(path: Path, num_classes: int) -> tuple[str, ...]:
    """Return the names in the file that lies beside the images; none when it is missing or does not fit."""
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError):
        return ()
    return names if len(names) == num_classes else ()
