"""Images of the user's own: a folder of image files, or NumPy arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spatl.data.dataset import Dataset
from spatl.data.images import CHANNELS, LARGEST_VALUE, decode_images, numbered, standardise, standardise_values
from spatl.data.labels import MAX_CLASSES, class_labels
from spatl.data.options import check_choice, check_integer, is_hidden, path_option
from spatl.data.reasons import one_line
from spatl.errors import DataError

_IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def folder(seed: int, *, path: str | None = None, image_size: int | None = None, channels: str = "colour") -> Dataset:
    """Return the images of a folder with one subfolder per class.

    Classes are the subfolders in alphabetical order; their images, which may lie deeper, are read in the order of their
    paths. Whatever has no suffix of an image, or lies below a name that begins with a dot, is passed over.

    Args:
        seed: Ignored; the images are fixed.
        path: The folder.
        image_size: Height and width to which images are resized; needed where they differ in size.
        channels: `colour` or `grey`; images of the other kind are converted.

    Raises:
        DataError: The folder is not there or holds fewer than two classes, or an image cannot be read.
    """
    check_choice("folder", "channels", channels, tuple(CHANNELS))
    if image_size is not None:
        check_integer("folder", "image_size", image_size, 1, 4096)
    root = path_option("folder", path, expected="a directory with one subfolder of images per class")
    if not root.is_dir():
        raise DataError(f"folder: no directory {root}; name one with a subfolder of images per class")
    classes = {each.name: _images_below(each) for each in sorted(root.iterdir()) if _is_class(each)}
    classes = {name: files for name, files in classes.items() if files}
    if len(classes) < 2:
        raise DataError(
            f"folder: {root} must hold at least two subfolders with images ({', '.join(_IMAGE_SUFFIXES)}), one per "
            f"class, got {', '.join(classes) or 'none'}"
        )
    files: list[tuple[str, Any]] = [(str(file), file) for each in classes.values() for file in each]
    pixels = decode_images("folder", files, channels=channels, image_size=image_size)
    labels = np.repeat(np.arange(len(classes)), [len(each) for each in classes.values()])
    return Dataset(
        "folder",
        torch.from_numpy(standardise(pixels)),
        torch.from_numpy(labels),
        num_classes=len(classes),
        class_names=tuple(classes),
    )


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _images_below(directory: Path) -> list[Path]:
    return sorted(
        file
        for file in directory.rglob("*")
        if file.suffix.lower() in _IMAGE_SUFFIXES and not is_hidden(file, directory) and file.is_file()
    )


def npz(seed: int, *, path: str | None = None, num_classes: int | None = None) -> Dataset:
    """Return the arrays of a file that `numpy.savez` or `numpy.savez_compressed` wrote.

    The file holds `images`, uint8 or floating point, `[N, H, W]` or `[N, C, H, W]`; `labels`, whole numbers or texts,
    `[N]`; and, if the examples have owners, `groups`, whole numbers or texts, `[N]`. A class is made of each label.

    Args:
        seed: Ignored; the images are fixed.
        path: The file.
        num_classes: How many classes there are, where some may have no example and labels are counted from 0.

    Raises:
        DataError: The file is not there, truncated or of another format, or an array does not fit.
    """
    if num_classes is not None:
        check_integer("npz", "num_classes", num_classes, 2, MAX_CLASSES)
    file = path_option("npz", path, expected="a file written by numpy.savez, with the arrays images and labels")
    arrays = _read_arrays(file)
    for name in ("images", "labels"):
        if name not in arrays:
            raise DataError(f"npz: {file} must hold the arrays images and labels, got {', '.join(arrays) or 'none'}")
    images, labels, groups = _shaped(file, arrays["images"]), arrays["labels"], arrays.get("groups")
    if labels.shape[:1] != images.shape[:1]:
        raise _misfit(file, f"labels must be whole numbers or texts [{len(images)}], one per image", labels)
    if groups is not None and (groups.dtype.kind not in "iuU" or groups.shape != labels.shape):
        raise _misfit(file, f"groups must be whole numbers or texts [{len(images)}], one per image", groups)
    classes = class_labels("npz", labels, num_classes=num_classes)
    return Dataset(
        "npz",
        torch.from_numpy(standardise(images) if images.dtype == np.uint8 else standardise_values(images)),
        torch.from_numpy(classes.numbers),
        num_classes=len(classes.names),
        groups=None if groups is None else torch.from_numpy(numbered(groups)[0]),
        class_names=classes.names,
        notes=classes.notes,
    )


def _read_arrays(file: Path) -> dict[str, NDArray[Any]]:
    if not file.is_file():
        raise DataError(f"npz: no file {file}; write it with numpy.savez(FILE, images=..., labels=...)")
    with file.open("rb") as stream:  # NumPy leaves a file it opened itself open when it is damaged
        try:
            content = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                raise ValueError("it holds a single array, as numpy.save writes it")
            arrays = {name: content[name] for name in content.files if name in ("images", "labels", "groups")}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("what it holds is not in NumPy's format")
        except MemoryError as error:
            raise DataError(f"npz: {file} does not fit in memory, or is damaged: {one_line(error)}") from error
        except Exception as error:  # NumPy's errors, and those of the decompressors below it
            raise DataError(
                f"npz: {file} is not a file that numpy.savez wrote with plain arrays, or it is truncated: "
                f"{one_line(error)}"
            ) from error
    return arrays


def _shaped(file: Path, images: NDArray[Any]) -> NDArray[Any]:
    expected = "images must be uint8 or floating point, [N, H, W] or [N, C, H, W] with no empty dimension"
    if images.ndim not in (3, 4) or images.size == 0 or (images.dtype != np.uint8 and images.dtype.kind != "f"):
        raise _misfit(file, expected, images)
    if images.dtype != np.uint8:
        low, high = float(images.min()), float(images.max())
        if not -LARGEST_VALUE <= low <= high <= LARGEST_VALUE:  # NaN is not, either
            raise DataError(
                f"npz: {file}: images must be finite and at most {LARGEST_VALUE:g} in size, got {low:g} to {high:g}"
            )
    if images.ndim == 3:
        return images[:, None]
    if images.shape[3] in (1, 3, 4) and images.shape[1] not in (1, 3, 4):
        raise _misfit(file, f"{expected}; for channels last use images.transpose(0, 3, 1, 2)", images)
    return images


def _misfit(file: Path, expected: str, found: NDArray[Any]) -> DataError:
    return DataError(f"npz: {file}: {expected}, got {found.dtype} {list(found.shape)}")
