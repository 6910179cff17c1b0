"""A labelled set of images in memory: what every source returns, and what the partitioners cut into clients."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.errors import DataError

MAX_CLASSES = 1_000_000
"""The most classes there may be: labels beyond are taken for ids, and would ask for a model that large."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with their labels, checked when made.

    Attributes:
        name: The name it is known by in `DATASETS`.
        images: `[N, C, H, W]`, float32, finite, about zero mean and unit variance.
        labels: `[N]`, int64, in `[0, num_classes)`.
        num_classes: The number of classes, from 2 to `MAX_CLASSES`; a class may have no example.
        groups: `[N]`, int64: whose each example is by nature, e.g. its writer; None when nothing is known of it.
        class_names: One name per class, or none at all.

    Raises:
        DataError: A tensor has the wrong shape, dtype or values.
    """

    name: str
    images: Tensor
    labels: Tensor
    num_classes: int
    groups: Tensor | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.float32 or images.dim() != 4 or images.numel() == 0:
            raise self._error("images must be float32 [N, C, H, W] with no empty dimension", _describe(images))
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise self._error(f"labels must be int64 [{len(images)}], one per image", _describe(labels))
        if self.num_classes < 2:
            raise self._error("num_classes must be at least 2", str(self.num_classes))
        if self.num_classes > MAX_CLASSES:
            raise self._error(f"num_classes must be at most {MAX_CLASSES} (are these ids?)", str(self.num_classes))
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise self._error(f"labels must lie in [0, {self.num_classes})", f"[{low}, {high}]")
        if not bool(images.isfinite().all()):
            raise self._error("images must be finite", "NaN or infinity")
        groups = self.groups
        if groups is not None and (groups.dtype != torch.int64 or groups.shape != labels.shape):
            raise self._error(f"groups must be int64 [{len(images)}], one per image", _describe(groups))
        if self.class_names and len(self.class_names) != self.num_classes:
            raise self._error(f"class_names must be {self.num_classes}, one per class", str(len(self.class_names)))

    def __len__(self) -> int:
        return len(self.labels)

    def _error(self, expected: str, found: str) -> DataError:
        return DataError(f"data set {self.name!r}: {expected}, got {found}")


def class_numbers(dataset: str, labels: NDArray[Any]) -> NDArray[np.int64]:
    """Return labels `[N]`, whole numbers of any width, as int64.

    Raises:
        DataError: One is too large to be the number of a class.
    """
    if len(labels) and labels.max() >= MAX_CLASSES:
        raise DataError(
            f"data set {dataset!r}: labels must be whole numbers below {MAX_CLASSES}, got {labels.max()}: are these "
            "ids? Number the classes from 0"
        )
    return labels.astype(np.int64)


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
