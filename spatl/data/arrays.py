"""Arrays of images and labels as a data set: shaped, standardised, and a class made of each label there is."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.data.dataset import Dataset, misfits
from spatl.data.images import numbered, standardise, standardise_values
from spatl.data.labels import class_labels
from spatl.errors import DataError
from spatl.pixels.files import LARGEST_VALUE

_USUAL_CHANNELS = (1, 3, 4)


def dataset_of_arrays(
    name: str,
    images: NDArray[Any],
    labels: NDArray[Any],
    *,
    groups: NDArray[Any] | None = None,
    splits: Tensor | None = None,
    num_classes: int | None = None,
    layout: str = "channels-first",
    where: str,
    notes: tuple[str, ...] = (),
) -> Dataset:
    """Return a data set of arrays.

    Args:
        name: What it is called.
        images: uint8 or floating point, `[N, H, W]` or `[N, C, H, W]`, or channels last where `layout` says so.
        labels: Whole numbers or texts, `[N]`, each of which makes a class.
        groups: Whole numbers or texts, `[N]`: whose each example is, if it is known.
        splits: As of `Dataset`.
        num_classes: How many classes there are, where some may have no example and labels are counted from 0.
        layout: `channels-first`, `channels-last`, or `auto`, which takes the likelier one.
        where: Where the arrays are from, for messages.
        notes: What a user should know of how they were read.

    Raises:
        DataError: An array does not fit.
    """
    shaped, of_layout = _shaped(name, where, images, layout)
    if labels.shape[:1] != shaped.shape[:1]:
        raise misfit(where, f"labels must be whole numbers or texts [{len(shaped)}], one per image", labels)
    if groups is not None and (groups.dtype.kind not in "iuU" or groups.shape != shaped.shape[:1]):
        raise misfit(where, f"groups must be whole numbers or texts [{len(shaped)}], one per image", groups)
    numbers, owners = (None, ()) if groups is None else numbered(groups)
    classes = class_labels(name, labels, num_classes=num_classes)
    values, normalisation = standardise(shaped) if shaped.dtype == np.uint8 else standardise_values(shaped)
    return Dataset(
        name,
        torch.from_numpy(values),
        torch.from_numpy(classes.numbers),
        num_classes=len(classes.names),
        groups=None if numbers is None else torch.from_numpy(numbers),
        group_names=owners,
        class_names=classes.names,
        notes=(*of_layout, *notes, *classes.notes),
        splits=splits,
        normalisation=normalisation,
        scale="channel",
    )


def misfit(where: str, expected: str, found: NDArray[Any]) -> DataError:
    """Return the error of an array that is other than expected."""
    return DataError(f"{where}: {expected}, got {found.dtype} {list(found.shape)}")


def _shaped(name: str, where: str, images: NDArray[Any], layout: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Return images as `[N, C, H, W]`, and what to tell of a guess."""
    expected = "images must be uint8 or floating point, [N, H, W] or [N, C, H, W] with no empty dimension"
    if images.ndim not in (3, 4) or images.size == 0 or (images.dtype != np.uint8 and images.dtype.kind != "f"):
        raise misfit(where, expected, images)
    if images.dtype != np.uint8:
        fits = (np.abs(images) <= LARGEST_VALUE).reshape(len(images), -1).all(axis=1)  # NaN does not, either
        if not fits.all():
            first = images[fits.argmin()].ravel()
            value = first[~(np.abs(first) <= LARGEST_VALUE)][0]
            raise DataError(
                f"{where}: images must be finite and at most {LARGEST_VALUE:g} in size, got {misfits(fits)}, "
                f"which holds {value:g}"
            )
    if images.ndim == 3:
        return images[:, None], ()
    notes: tuple[str, ...] = ()
    if layout == "auto":
        layout, notes = _likely_layout(name, images.shape)
    return (images.transpose(0, 3, 1, 2) if layout == "channels-last" else images), notes


def _likely_layout(name: str, shape: tuple[int, ...]) -> tuple[str, tuple[str, ...]]:
    """Return which of the two layouts speaks for itself, and what to tell of it.

    Images are mostly square, and have mostly 1, 3 or 4 channels; each speaks for the layout that makes them so. Where
    that tells nothing, the channels are first, as documented.
    """
    one, two, three = shape[1:]
    first = (two == three) + (one in _USUAL_CHANNELS)
    last = (one == two) + (three in _USUAL_CHANNELS)
    layout = "channels-last" if last > first else "channels-first"
    if last < first or not last:
        return layout, ()
    channels, size = (three, f"{one} x {two}") if last > first else (one, f"{two} x {three}")
    told = f"{name}: the array images {list(shape)} is read as images of {size}, channels: {channels} ({layout})"
    other = "channels-first" if last > first else "channels-last"
    return layout, (f"{told}: set data.options.layout to {layout} or {other} to say what it is",)
