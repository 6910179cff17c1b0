"""Images of the user's own: a folder of image files, or NumPy arrays."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.data.arrays import dataset_of_arrays, misfit
from spatl.data.brought import examples_of
from spatl.data.checks import check_choice, check_integer, check_switch, one_line, path_option
from spatl.data.dataset import SPLITS, Dataset
from spatl.data.folders import LAYOUTS, each_of, filed_images
from spatl.data.images import decode_images, numbered, standardise
from spatl.data.labels import MAX_CLASSES, class_order
from spatl.errors import DataError
from spatl.pixels.files import CHANNELS
from spatl.tasks.targets import TaskName

_INPUT = "inputs_"
_LAYOUTS = ("auto", "channels-first", "channels-last")
_ARRAYS_OF_SPLITS = tuple(
    [pair for name in names for pair in ((f"x_{name}", f"y_{name}"), (f"{name}_images", f"{name}_labels"))]
    for names in (("train",), ("val", "valid", "validation"), ("test",))
)


def folder(
    seed: int,
    *,
    path: str | None = None,
    image_size: int | None = None,
    channels: str = "colour",
    layout: str = "auto",
    pool: bool = False,
) -> Dataset:
    """Return the images of a directory whose folders say their classes, and perhaps their owners and splits.

    Classes are in alphabetical order, or by number where all names are numbers; their images, which may lie deeper, are
    read in the order of their paths. Whatever has no suffix of an image, or lies below a name that begins with a dot,
    is passed over.

    Args:
        seed: Ignored; the images are fixed.
        path: The directory.
        image_size: Height and width to which images are resized; needed where they differ in size.
        channels: `colour` or `grey`; images of the other kind are converted.
        layout: What the folders are, as of `filed_images`.
        pool: Whether folders of splits are pooled, and each client draws its own splits.

    Raises:
        DataError: The directory is not there, its folders cannot be understood, or an image cannot be read.
    """
    check_choice("folder", "channels", channels, tuple(CHANNELS))
    check_choice("folder", "layout", layout, LAYOUTS)
    check_switch("folder", "pool", pool)
    if image_size is not None:
        check_integer("folder", "image_size", image_size, 1, 4096)
    root = path_option("folder", path, expected="a directory with one subfolder of images per class")
    if not root.is_dir():
        raise DataError(f"folder: no directory {root}; name one with a subfolder of images per class")
    files, notes = filed_images(root, layout)
    classes = class_order({file.label for file in files})
    files = list(each_of(files, classes))
    pixels = decode_images("folder", [(str(file.path), file.path) for file in files], channels=channels,
                           image_size=image_size)  # fmt: skip
    number = {label: place for place, label in enumerate(classes)}
    owners, owner_names = numbered(np.array([file.owner or "" for file in files]))
    owned = owner_names != ("",)
    splits = None
    if not pool and any(file.split is not None for file in files):
        splits = torch.tensor([SPLITS.index(file.split or "train") for file in files])
    images, normalisation = standardise(pixels)
    return Dataset(
        "folder",
        torch.from_numpy(images),
        torch.tensor([number[file.label] for file in files]),
        num_classes=len(classes),
        groups=torch.from_numpy(owners) if owned else None,
        group_names=owner_names if owned else (),
        class_names=tuple(classes),
        notes=notes,
        splits=splits,
        normalisation=normalisation,
        scale="channel",
    )


def npz(
    seed: int,
    *,
    path: str | None = None,
    num_classes: int | None = None,
    layout: str = "auto",
    pool: bool = False,
    task: TaskName = "classification",
) -> Dataset:
    """Return the arrays of a file that `numpy.savez` or `numpy.savez_compressed` wrote.

    The file holds `images`, uint8 or floating point, `[N, H, W]` or `[N, C, H, W]`, or with the channels last if
    `layout` or their shape says so; `labels`, whole numbers or texts, `[N]`, each of which makes a class; and, if the
    examples have owners, `groups`, whole numbers or texts, `[N]`. Or it holds the splits one by one, as `x_train` and
    `y_train`, or `train_images` and `train_labels`, and likewise for `test` and `val`.

    Examples that are no images: `inputs` `[N, ...]` of numbers or tokens, or several of them as `inputs_NAME`, and
    `targets`; with `groups`, and `splits` `[N]` (`train`, `validation`, `test`), if there are any (`examples_of`).

    Args:
        seed: Ignored; the images are fixed.
        path: The file.
        num_classes: How many classes there are, where some may have no example and labels are counted from 0.
        layout: `channels-first`, `channels-last`, or `auto`, which takes the likelier one.
        pool: Whether such splits are pooled, and each client draws its own.
        task: What the targets are for, as of `task.name`.

    Raises:
        DataError: The file is not there, truncated or of another format, or an array does not fit.
    """
    check_choice("npz", "layout", layout, _LAYOUTS)
    check_switch("npz", "pool", pool)
    if num_classes is not None:
        check_integer("npz", "num_classes", num_classes, 2, MAX_CLASSES)
    file = path_option("npz", path, expected="a file written by numpy.savez, with the arrays images and labels")
    read = _read_arrays(file)
    if (inputs := _inputs_among(read)) is not None:
        return examples_of(
            inputs, read["targets"], name="npz", where=f"npz: {file}", task=task, groups=read.get("groups"),
            splits=None if pool else read.get("splits"),
        )  # fmt: skip
    arrays, splits = _pooled(file, read)
    if task != "classification":
        raise DataError(
            f"npz: {file} has labels; the targets of {task} stand beside inputs: the arrays inputs and targets"
        )
    notes: tuple[str, ...] = ()
    if splits is not None and not pool:
        counts = ", ".join(f"{int((splits == place).sum()):,} of {split}" for place, split in enumerate(SPLITS))
        notes = (f"npz: the splits are kept as they are in {file.name}: {counts} (data.options.pool)",)
    return dataset_of_arrays(
        "npz", arrays["images"], arrays["labels"], groups=arrays.get("groups"), splits=None if pool else splits,
        num_classes=num_classes, layout=layout, where=f"npz: {file}", notes=notes,
    )  # fmt: skip


def _inputs_among(arrays: Mapping[str, Any]) -> Any:
    """Return the inputs of a file that has inputs and targets: one array, or several by name; None of another."""
    if "targets" not in arrays:
        return None
    named = {name.removeprefix(_INPUT): each for name, each in arrays.items() if name.startswith(_INPUT)}
    return arrays.get("inputs", named or None)


def _pooled(file: Path, arrays: dict[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], Tensor | None]:
    """Return the arrays `images` and `labels`, and where they were several by split, which split each example is of."""
    if "images" in arrays and "labels" in arrays:
        return arrays, None
    found = [
        (place, arrays[one], arrays[other])
        for place, names in enumerate(_ARRAYS_OF_SPLITS)
        for one, other in names
        if one in arrays and other in arrays
    ]
    if not found or found[0][0] != SPLITS.index("train"):
        raise DataError(
            f"npz: {file} must hold the arrays images and labels, or x_train and y_train with those of other splits, "
            f"got {', '.join(arrays) or 'none'}"
        )
    where, alike = f"npz: {file}", found[0][1]
    for _, images, labels in found:
        if images.shape[1:] != alike.shape[1:] or images.dtype != alike.dtype:
            raise misfit(where, f"the images of all splits must be {alike.dtype} {list(alike.shape)}", images)
        if labels.shape[:1] != images.shape[:1]:
            raise misfit(where, f"labels must be whole numbers or texts [{len(images)}], one per image", labels)
        if labels.shape[1:] != found[0][2].shape[1:]:
            raise misfit(where, f"the labels of all splits must be alike, e.g. {list(found[0][2].shape)}", labels)
    splits = torch.cat([torch.full((len(labels),), place) for place, _, labels in found])
    pooled = {
        "images": np.concatenate([images for _, images, _ in found]),
        "labels": np.concatenate([labels for _, _, labels in found]),
    }
    return pooled, splits if splits.any() else None


def _read_arrays(file: Path) -> dict[str, NDArray[Any]]:
    if not file.is_file():
        raise DataError(f"npz: no file {file}; write it with numpy.savez(FILE, images=..., labels=...)")
    with file.open("rb") as stream:  # NumPy leaves a file it opened itself open when it is damaged
        try:
            content = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                raise ValueError("it holds a single array, as numpy.save writes it")
            known = {name for names in _ARRAYS_OF_SPLITS for pair in names for name in pair}
            single = {"images", "labels"} <= set(content.files)
            wanted = {"images", "labels", "groups"} if single else known & set(content.files) or set(content.files)
            if "targets" in content.files and not single:
                beside = {"inputs", "targets", "groups", "splits"}
                wanted = {name for name in content.files if name in beside or name.startswith(_INPUT)}
            arrays = {name: content[name] for name in content.files if name in wanted}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("what it holds is not in NumPy's format")
        except MemoryError as error:
            raise DataError(f"npz: {file} does not fit in memory, or is damaged: {one_line(error)}") from error
        except Exception as error:  # NumPy's errors, and those of the decompressors below it
            if str(error).startswith("Object arrays"):  # NumPy's words for it
                raise DataError(
                    f"npz: {file} holds Python objects, which are not read, since they could run code: write numbers "
                    "as float32 and texts as array.astype(str)"
                ) from error
            raise DataError(
                f"npz: {file} is not a file that numpy.savez wrote with plain arrays, or it is truncated: "
                f"{one_line(error)}"
            ) from error
    return arrays
