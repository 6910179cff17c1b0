"""Images in files of MNIST's format: MNIST, Fashion-MNIST, EMNIST, Kuzushiji-MNIST, or the user's own.

A directory holds `train-images-idx3-ubyte` with `train-labels-idx1-ubyte`, and mostly the official test set beside it,
`t10k-` or `test-`. EMNIST (Cohen et al., 2017, arXiv 1702.05373) puts the name of a set before that,
`emnist-letters-train-images-idx3-ubyte`; its images lie on their side, rows for columns, and its letters count from 1.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.data.arrays import dataset_of_arrays
from spatl.data.checks import check_choice, check_integer, check_switch, path_option
from spatl.data.dataset import SPLITS, Dataset
from spatl.data.idx_files import read_idx
from spatl.data.labels import MAX_CLASSES, listed
from spatl.errors import DataError
from spatl.seeding import numpy_generator

_NAME = re.compile(
    r"(?P<set>.*?)[-_.]?(?P<split>train|t10k|test)[-_.](?P<what>images|labels)[-_.]idx[0-9]-[a-z0-9]+(\.gz)?"
)
_EXPECTED: Final = "a directory with train-images-idx3-ubyte, train-labels-idx1-ubyte and perhaps t10k- ones"
_LAYOUTS: Final = ("auto", "channels-first", "channels-last")


@dataclass(frozen=True)
class _Pair:
    """Files of images and of their labels."""

    images: Path
    labels: Path


def idx(
    seed: int,
    *,
    path: str | None = None,
    subset: str | None = None,
    train_images: str | None = None,
    train_labels: str | None = None,
    test_images: str | None = None,
    test_labels: str | None = None,
    transpose: bool | None = None,
    first_label: int = 0,
    classes: Sequence[str] | None = None,
    layout: str = "auto",
    num_train: int | None = None,
    num_test: int | None = None,
    pool: bool = False,
) -> Dataset:
    """Return the images of IDX files, with the official test set as the split `test`.

    Args:
        seed: Draws the examples where `num_train` or `num_test` is given.
        path: The directory.
        subset: What the files' names begin with where several sets lie in the directory, e.g. `emnist-balanced`.
        train_images: A file of images, in the directory, where the names are not the usual ones.
        train_labels: Its labels.
        test_images: The same of the test set.
        test_labels: Its labels.
        transpose: Whether rows and columns of the images are swapped; None for doing so where the set is EMNIST's.
        first_label: The label of the first class, which is taken from every label; 1 for EMNIST's letters.
        classes: The classes' names in the order of the labels; None for calling them by these.
        layout: As of `npz`, where images have channels.
        num_train: How many of the training examples are kept, drawn by the seed; None keeps all.
        num_test: Likewise of the test examples.
        pool: Whether test and training examples are pooled, and each client draws its own splits.

    Raises:
        DataError: Files are missing, damaged, ambiguous, or do not go together.
    """
    wanted = {"train": num_train, "test": num_test}
    _check_options(pool=pool, layout=layout, first_label=first_label, transpose=transpose, wanted=wanted)
    names, directory = _class_names(classes), path_option("idx", path, expected=_EXPECTED)
    if not directory.is_dir():
        raise DataError(f"idx: no directory {directory}; name {_EXPECTED}")
    named = {"train": (train_images, train_labels), "test": (test_images, test_labels)}
    pairs = _named(directory, named) if any(map(any, named.values())) else _found(directory, subset)
    if num_test is not None and "test" not in pairs:
        raise DataError(f"idx: num_test is {num_test}, but there is no test set in {directory}: leave it out")
    arrays = {split: _kept(split, _read(pair), wanted[split], seed) for split, pair in pairs.items()}
    images, labels, splits = _joined(arrays, pairs)
    turned = pairs["train"].images.name.startswith("emnist") if transpose is None else transpose
    notes = (_told(splits, directory),) if splits is not None and not pool else ()
    dataset = dataset_of_arrays(
        "idx", images.swapaxes(1, 2) if turned else images, _from_first(labels, first_label),
        splits=None if pool else splits, num_classes=len(names) or None, layout=layout,
        where=f"idx: {directory}", notes=notes,
    )  # fmt: skip
    return replace(dataset, class_names=names) if names else dataset


def _check_options(
    *, pool: object, layout: object, first_label: object, transpose: object, wanted: Mapping[str, object]
) -> None:
    check_switch("idx", "pool", pool)
    check_choice("idx", "layout", layout, _LAYOUTS)
    check_integer("idx", "first_label", first_label, 0, MAX_CLASSES)
    if transpose is not None:
        check_switch("idx", "transpose", transpose)
    for split, number in wanted.items():
        if number is not None:
            check_integer("idx", f"num_{split}", number, 1, 1 << 32)


def _class_names(classes: object) -> tuple[str, ...]:
    if classes is None:
        return ()
    if not isinstance(classes, list | tuple) or len(classes) < 2 or not all(isinstance(name, str) for name in classes):
        raise DataError(f"idx: classes must be two names or more, or left out, got {classes!r:.60}")
    return tuple(classes)


def _named(directory: Path, named: dict[str, tuple[str | None, str | None]]) -> dict[str, _Pair]:
    """Return the files that the user names, by split."""
    pairs = {}
    for split, (images, labels) in named.items():
        if images is None and labels is None and split != "train":
            continue
        if not isinstance(images, str) or not isinstance(labels, str):
            raise DataError(f"idx: {split}_images and {split}_labels must both name a file, got {images!r}, {labels!r}")
        pairs[split] = _Pair(directory / images, directory / labels)
    return pairs


def _found(directory: Path, wanted: object) -> dict[str, _Pair]:
    """Return the files of a set with the usual names, by split."""
    sets: dict[str, dict[tuple[str, str], Path]] = {}
    for file in sorted(directory.iterdir()):  # a plain file comes before its gzipped copy, and is taken
        if (match := _NAME.fullmatch(file.name)) and file.is_file():
            split = "train" if match["split"] == "train" else "test"
            found = sets.setdefault(match["set"], {})
            found.setdefault((split, match["what"]), file)
    if not sets:
        raise DataError(
            f"idx: no IDX files in {directory}; expected {_EXPECTED}, or name them: data.options.train_images"
        )
    if wanted is None and len(sets) > 1:
        raise DataError(
            f"idx: {len(sets)} sets lie in {directory}: name one in data.options.subset: {listed(sorted(sets))}"
        )
    name = next(iter(sets)) if wanted is None else wanted
    if name not in sets:
        raise DataError(f"idx: no set {name!r} in {directory}, there are {listed(sorted(sets))}")
    files = sets[str(name)]
    pairs = {
        split: _Pair(files[split, "images"], files[split, "labels"])
        for split in ("train", "test")
        if (split, "images") in files and (split, "labels") in files
    }
    alone = [file for (split, _), file in files.items() if split not in pairs]
    if alone or "train" not in pairs:
        raise DataError(
            f"idx: {directory} must hold images and labels of the training set, and both or none of the test set, "
            f"got {listed([file.name for file in files.values()])}"
        )
    return pairs


def _read(pair: _Pair) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return images of a kind that data sets are made of, and as many labels."""
    images, labels = read_idx("idx", pair.images), read_idx("idx", pair.labels)
    if images.ndim < 3:
        raise DataError(f"idx: {pair.images} must hold images [N, H, W], got {list(images.shape)}: are these labels?")
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind == "i":
        labels = labels[:, 0]  # QMNIST's: the digit, and then who wrote it and where
    if labels.shape != images.shape[:1]:
        raise DataError(
            f"idx: {pair.labels.name} must hold one label for each of {len(images)} images in {pair.images.name}, got "
            f"{list(labels.shape)}"
        )
    return images if images.dtype.kind in "uf" else images.astype(np.float64), labels


def _kept(
    split: str, arrays: tuple[NDArray[Any], NDArray[Any]], number: int | None, seed: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return so many of a split's examples, in their order."""
    images, labels = arrays
    if number is None:
        return arrays
    if number > len(labels):
        raise DataError(f"idx: num_{split} must be at most {len(labels)}, which there are, got {number}")
    rows = np.sort(numpy_generator(seed, f"idx-{split}").permutation(len(labels))[:number])
    return images[rows], labels[rows]


def _joined(
    arrays: dict[str, tuple[NDArray[Any], NDArray[Any]]], pairs: dict[str, _Pair]
) -> tuple[NDArray[Any], NDArray[Any], Tensor | None]:
    """Return the images and labels of all splits, and which split each is of; None for training examples alone."""
    alike = arrays["train"][0]
    for split, (images, _) in arrays.items():
        if images.shape[1:] != alike.shape[1:] or images.dtype != alike.dtype:
            raise DataError(
                f"idx: images of all splits must be {alike.dtype} {list(alike.shape[1:])}, got {images.dtype} "
                f"{list(images.shape[1:])} in {pairs[split].images}"
            )
    splits = torch.cat([torch.full((len(each[1]),), SPLITS.index(split)) for split, each in arrays.items()])
    images, labels = (np.concatenate([each[place] for each in arrays.values()]) for place in (0, 1))
    return images, labels, splits if len(arrays) > 1 else None


def _from_first(labels: NDArray[Any], first_label: int) -> NDArray[np.int64]:
    """Return labels counted from 0."""
    numbers = labels.astype(np.int64)
    if int(numbers.min()) < first_label:
        raise DataError(f"idx: labels must be {first_label} or more (data.options.first_label), got {numbers.min()}")
    return numbers - first_label


def _told(splits: Tensor, directory: Path) -> str:
    counts = splits.bincount(minlength=len(SPLITS)).tolist()
    kept = ", ".join(f"{count:,} of {split}" for split, count in zip(SPLITS, counts, strict=True) if count)
    return f"idx: the splits are kept as they are in {directory}: {kept} (data.options.pool)"
