"""Labelled examples in memory, which every source returns and the partitioners divide among clients."""

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.data.labels import MAX_CLASSES, listed
from spatl.data.normalisation import Normalisation, Scale
from spatl.errors import DataError
from spatl.tasks.targets import TASKS, TaskName, as_task_has_them, fault_of_targets
from spatl.tensors.inputs import Inputs, NamedInputs, one_tensor, parts_of, shapes_of

SPLITS: Final = ("train", "validation", "test")
"""The splits that a data set may come with, as `Dataset.splits` numbers them."""


_NUM_STRATA: Final = 10


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples with their targets, checked when made.

    Attributes:
        name: The name it is known by in `DATASETS`.
        inputs: `[N, ...]`, float32, finite; or int64, 0 or more, such as tokens `[N, T]`; or several of these with
            names (`NamedInputs`). Images are `[N, C, H, W]`.
        targets: As its task has them (`spatl.tasks.targets`): of a classification `[N]`, int64, in `[0, num_classes)`.
        num_classes: The number of classes, from 1 to `MAX_CLASSES`; a class may have no example. Of other tasks that of
            the outputs: of labels, values or tokens (K).
        groups: `[N]`, int64: whose each example is by nature, e.g. its writer; None when nothing is known of it.
        group_names: The names of those owners, by their numbers; none where nobody has named them.
        class_names: One name per class or output; if none are given, their numbers.
        splits: `[N]`, int64: the place in `SPLITS` of the split that each example was published in; None where each
            client draws splits of its own. Of a split that no example is in, clients draw theirs from `train`.
        notes: What a user should know of how it was read, a line each.
        normalisation: By what the values that were read became the inputs; None where they are the inputs, or nobody
            knows.
        scale: Over what the values that were read should be brought to mean 0 and variance 1 where a config does not
            say it: each `channel` `[N, C, ...]`, each `feature` (place in `[...]`), or `none` of them.
        num_tokens: Of tokens, how many there are; the largest and one if it is not known.
        task: What the targets are for.
        target_scale: By what the values that were read became the targets, of each output; None where they are.

    Raises:
        DataError: A tensor has the wrong shape, dtype or values.
    """

    name: str
    inputs: Inputs
    targets: Tensor
    num_classes: int
    groups: Tensor | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    splits: Tensor | None = None
    normalisation: Normalisation | None = None
    group_names: tuple[str, ...] = ()
    scale: Scale = "none"
    num_tokens: int | None = None
    task: TaskName = "classification"
    target_scale: Normalisation | None = None

    def __post_init__(self) -> None:
        number = self._checked_inputs()
        object.__setattr__(self, "targets", as_task_has_them(self.task, self.targets))
        if self.num_classes < 1:
            raise self._error("num_classes must be at least 1", str(self.num_classes))
        if self.num_classes > MAX_CLASSES:
            raise self._error(f"num_classes must be at most {MAX_CLASSES} (are these ids?)", str(self.num_classes))
        fault = fault_of_targets(self.task, self.targets, num_examples=number, num_outputs=self.num_classes)
        if fault is not None:
            raise self._error(*fault)
        groups = self.groups
        if groups is not None and (groups.dtype != torch.int64 or groups.shape != (number,)):
            raise self._error(f"groups must be int64 [{number}], one per example", shapes_of(groups))
        if groups is not None and self.group_names and not 0 <= int(groups.max()) < len(self.group_names):
            raise self._error(f"group_names must be of groups up to {int(groups.max())}", str(len(self.group_names)))
        splits = self.splits
        if splits is not None:
            if splits.dtype != torch.int64 or splits.shape != (number,):
                raise self._error(f"splits must be int64 [{number}], one per example", shapes_of(splits))
            if int(splits.min()) < 0 or int(splits.max()) >= len(SPLITS) or not bool((splits == 0).any()):
                found = f"{int(splits.min())} to {int(splits.max())}"
                raise self._error("splits must lie in [0, 3), and some be 0", found)
        if not self.class_names:
            object.__setattr__(self, "class_names", tuple(map(str, range(self.num_classes))))
        if len(self.class_names) != self.num_classes:
            raise self._error(f"class_names must be {self.num_classes}, one per class", str(len(self.class_names)))
        if len(set(self.class_names)) < self.num_classes:
            twice = next(name for name, number in Counter(self.class_names).items() if number > 1)
            raise self._error("class_names must differ", f"{twice!r} twice")

    def _checked_inputs(self) -> int:
        """Return how many examples there are.

        Raises:
            DataError: The inputs are of another kind, or of unequal lengths, or not finite.
        """
        lengths = set()
        for name, each in parts_of(self.inputs):
            what = f"the input {name!r}" if name else "inputs"
            if each.dim() < 2 or each.numel() == 0 or each.dtype not in (torch.float32, torch.int64):
                expected = f"{what} must be float32 or int64 [N, ...] with no empty dimension"
                raise self._error(expected, shapes_of(each))
            if each.dtype == torch.int64 and (lowest := int(each.min())) < 0:
                raise self._error(f"{what} of whole numbers must be 0 or more", str(lowest))
            if not bool(each.isfinite().all()):
                raise self._error(f"{what} must be finite", misfits(each.isfinite().flatten(1).all(1).numpy()))
            if each.dtype == torch.int64 and self.num_tokens is not None and int(each.max()) >= self.num_tokens:
                raise self._error(f"{what} must be tokens in [0, {self.num_tokens})", str(int(each.max())))
            lengths.add(len(each))
        if len(lengths) != 1:
            raise self._error("all inputs must have one length", shapes_of(self.inputs) or "none")
        return lengths.pop()

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def images(self) -> Tensor:
        """The inputs where they are one tensor, as images are."""
        return one_tensor(self.inputs)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Channels, height and width of the inputs where they are images; None for others."""
        return image_shape_of(self.inputs)

    def sizes(self) -> dict[str, Any]:
        """Return what the examples say of a network for them, by the names that its factory may ask for.

        `num_classes` always; of images `in_channels` and `image_size` (the height); of one tensor `input_shape`
        `(...)`, of floating point `num_features` (all its numbers), of tokens `num_tokens` (the largest and one) and
        `length`; of several inputs `input_shapes` by name.
        """
        return sizes_of_inputs(self.inputs, num_classes=self.num_classes, num_tokens=self.num_tokens)

    def strata(self) -> Tensor:
        """Return int64 `[N]`, by which shares of examples are alike: classes, or tenths of a regression's first value.

        Of other tasks all are of one.
        """
        if TASKS[self.task].labels:
            return self.targets
        if not TASKS[self.task].is_scaled:
            return torch.zeros(len(self), dtype=torch.int64)
        order = self.targets[:, 0].argsort(stable=True)
        return torch.empty_like(order).scatter_(0, order, torch.arange(len(self)) * _NUM_STRATA // len(self))

    def digest(self) -> bytes:
        """Return a digest of the examples, their targets, owners, splits and the classes' names (SHA-256)."""
        tensors = [each for _, each in parts_of(self.inputs)]
        shapes = tensors[0].shape if len(tensors) == 1 else shapes_of(self.inputs)
        told = (shapes, self.class_names, *(() if self.task == "classification" else (self.task,)))
        digest = hashlib.sha256(repr(told).encode())
        for tensor in (*tensors, self.targets, self.groups, self.splits):
            digest.update(b"-" if tensor is None else tensor.numpy().tobytes())
        return digest.digest()

    def has_split(self, name: str) -> bool:
        """Return whether some examples were published in a split of this name."""
        return self.size_of(name) > 0

    def size_of(self, name: str) -> int:
        """Return how many examples were published in a split of this name."""
        return 0 if self.splits is None else int((self.splits == SPLITS.index(name)).sum())

    def remarks(self) -> tuple[str, ...]:
        """Return what a user should know of it, a line each: the notes, and which classes have no example."""
        if not TASKS[self.task].labels:
            return self.notes
        remarks, there = list(self.notes), self.targets.bincount(minlength=self.num_classes)
        if empty := self._named(there == 0):
            remarks.append(f"{self.name}: {len(empty)} of {self.num_classes} classes have no example: {listed(empty)}")
        if self.splits is not None:
            trained = self.targets[self.splits == SPLITS.index("train")].bincount(minlength=self.num_classes)
            if unseen := self._named((trained == 0) & (there > 0)):
                remarks.append(f"{self.name}: {len(unseen)} classes are in no training example: {listed(unseen)}")
        return tuple(remarks)

    def _named(self, which: Tensor) -> list[str]:
        return [name for name, is_one in zip(self.class_names, which.tolist(), strict=True) if is_one]

    def _error(self, expected: str, found: str) -> DataError:
        return DataError(f"data set {self.name!r}: {expected}, got {found}")


def misfits(fits: NDArray[np.bool_]) -> str:
    """Name the number of examples that are not as they must be, bool [N], and the first of them, counted from 0."""
    wrong = np.flatnonzero(~fits)
    return f"{len(wrong)} of {len(fits)} examples that are not, the first of them example {wrong[0]}"


def image_shape_of(inputs: Inputs) -> tuple[int, int, int] | None:
    """Return channels, height and width of inputs where they are images `[N, C, H, W]`; None for others."""
    if isinstance(inputs, NamedInputs) or inputs.dim() != 4 or not inputs.is_floating_point():
        return None
    return int(inputs.shape[1]), int(inputs.shape[2]), int(inputs.shape[3])


def sizes_of_inputs(inputs: Inputs, *, num_classes: int, num_tokens: int | None) -> dict[str, Any]:
    """Return what inputs say of a network for them (`Dataset.sizes`)."""
    found: dict[str, Any] = {"num_classes": num_classes}
    if isinstance(inputs, NamedInputs):
        return found | {"input_shapes": {name: tuple(each.shape[1:]) for name, each in inputs.items()}}
    if (images := image_shape_of(inputs)) is not None:
        found |= {"in_channels": images[0], "image_size": images[1]}
    shape = tuple(inputs.shape[1:])
    if inputs.is_floating_point():
        return found | {"input_shape": shape, "num_features": math.prod(shape)}
    num_tokens = int(inputs.max()) + 1 if num_tokens is None else num_tokens
    return found | {"input_shape": shape, "num_tokens": num_tokens, "length": shape[0]}
