"""Labelled images in memory, which every source returns and the partitioners divide among clients."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.data.labels import MAX_CLASSES, listed
from spatl.data.normalisation import Normalisation
from spatl.errors import DataError

SPLITS: Final = ("train", "validation", "test")
"""The splits that a data set may come with, as `Dataset.splits` numbers them."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with their labels, checked when made.

    Attributes:
        name: The name it is known by in `DATASETS`.
        inputs: `[N, C, H, W]`, float32, finite, about zero mean and unit variance.
        targets: `[N]`, int64, in `[0, num_classes)`.
        num_classes: The number of classes, from 1 to `MAX_CLASSES`; a class may have no example.
        groups: `[N]`, int64: whose each example is by nature, e.g. its writer; None when nothing is known of it.
        group_names: The names of those owners, by their numbers; none where nobody has named them.
        class_names: One name per class; if none are given, their numbers.
        splits: `[N]`, int64: the place in `SPLITS` of the split that each example was published in; None where each
            client draws splits of its own. Of a split that no example is in, clients draw theirs from `train`.
        notes: What a user should know of how it was read, a line each.
        normalisation: By what the pixels that were read became the images; None where they are the images, or nobody
            knows.

    Raises:
        DataError: A tensor has the wrong shape, dtype or values.
    """

    name: str
    inputs: Tensor
    targets: Tensor
    num_classes: int
    groups: Tensor | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    splits: Tensor | None = None
    normalisation: Normalisation | None = None
    group_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        images, labels = self.inputs, self.targets
        if images.dtype != torch.float32 or images.dim() != 4 or images.numel() == 0:
            raise self._error("images must be float32 [N, C, H, W] with no empty dimension", _describe(images))
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise self._error(f"labels must be int64 [{len(images)}], one per image", _describe(labels))
        if self.num_classes < 1:
            raise self._error("num_classes must be at least 1", str(self.num_classes))
        if self.num_classes > MAX_CLASSES:
            raise self._error(f"num_classes must be at most {MAX_CLASSES} (are these ids?)", str(self.num_classes))
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise self._error(f"labels must lie in [0, {self.num_classes})", f"[{low}, {high}]")
        if not bool(images.isfinite().all()):
            raise self._error("images must be finite", misfits(images.isfinite().flatten(1).all(1).numpy()))
        groups = self.groups
        if groups is not None and (groups.dtype != torch.int64 or groups.shape != labels.shape):
            raise self._error(f"groups must be int64 [{len(images)}], one per image", _describe(groups))
        if groups is not None and self.group_names and not 0 <= int(groups.max()) < len(self.group_names):
            raise self._error(f"group_names must be of groups up to {int(groups.max())}", str(len(self.group_names)))
        splits = self.splits
        if splits is not None:
            if splits.dtype != torch.int64 or splits.shape != labels.shape:
                raise self._error(f"splits must be int64 [{len(images)}], one per image", _describe(splits))
            if int(splits.min()) < 0 or int(splits.max()) >= len(SPLITS) or not bool((splits == 0).any()):
                found = f"{int(splits.min())} to {int(splits.max())}"
                raise self._error("splits must lie in [0, 3), and some be 0", found)
        if not self.class_names:
            object.__setattr__(self, "class_names", tuple(map(str, range(self.num_classes))))
        if len(self.class_names) != self.num_classes:
            raise self._error(f"class_names must be {self.num_classes}, one per class", str(len(self.class_names)))

    def __len__(self) -> int:
        return len(self.targets)

    def has_split(self, name: str) -> bool:
        """Return whether some examples were published in a split of this name."""
        return self.size_of(name) > 0

    def size_of(self, name: str) -> int:
        """Return how many examples were published in a split of this name."""
        return 0 if self.splits is None else int((self.splits == SPLITS.index(name)).sum())

    def remarks(self) -> tuple[str, ...]:
        """Return what a user should know of it, a line each: the notes, and which classes have no example."""
        counts = self.targets.bincount(minlength=self.num_classes).tolist()
        empty = [name for name, count in zip(self.class_names, counts, strict=True) if not count]
        if not empty:
            return self.notes
        told = f"{self.name}: {len(empty)} of {self.num_classes} classes have no example: {listed(empty)}"
        return (*self.notes, told)

    def _error(self, expected: str, found: str) -> DataError:
        return DataError(f"data set {self.name!r}: {expected}, got {found}")


def misfits(fits: NDArray[np.bool_]) -> str:
    """Name the number of images that are not as they must be, bool [N], and the first of them, counted from 0."""
    wrong = np.flatnonzero(~fits)
    return f"{len(wrong)} of {len(fits)} images that are not, the first of them image {wrong[0]}"


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
