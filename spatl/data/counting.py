"""Counting of a partition's examples by what clients can differ in: classes, labels, or tenths of a value."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spatl.data.dataset import Dataset
from spatl.tasks.targets import TASKS


@dataclass(frozen=True, eq=False)
class Kinds:
    """Kinds of examples, and how many of each every client has.

    Attributes:
        noun: What a kind is called, and many of them.
        names: The name of each of C kinds.
        counts: int64 `[K, C]`, of K clients. An example is of one kind, but of as many labels as it has.
        sizes: int64 `[K]`, how many examples each client has.
    """

    noun: tuple[str, str]
    names: tuple[str, ...]
    counts: NDArray[np.int64]
    sizes: NDArray[np.int64]


def count_kinds(dataset: Dataset, parts: Sequence[Tensor]) -> Kinds:
    """Count the examples of each client: by class; of labels that are 1; by tenths of a regression's first value.

    Sequences of tokens are of one kind.

    Args:
        dataset: The whole data set.
        parts: Indices of each client's examples.
    """
    row, sizes = TASKS[dataset.task], np.array([len(part) for part in parts], dtype=np.int64)
    if row.by_place:
        return Kinds(("sequence", "sequences"), ("sequences",), sizes[:, None], sizes)
    if row.frequencies and not row.labels:
        counts = np.stack([dataset.targets[part].sum(dim=0).long().numpy() for part in parts])
        return Kinds(row.noun, tuple(dataset.class_names), counts, sizes)
    kinds, noun, names = dataset.strata(), row.noun, tuple(dataset.class_names)
    if row.is_scaled:
        noun, names = ("tenth", "tenths"), _tenths(dataset, kinds)
    counts = np.stack([kinds[part].bincount(minlength=len(names)).numpy() for part in parts])
    return Kinds(noun, names, counts, sizes)


def _tenths(dataset: Dataset, kinds: Tensor) -> tuple[str, ...]:
    """Return what values each tenth of a regression's first output has, in their own unit."""
    values, scale = dataset.targets[:, 0].double(), dataset.target_scale
    if scale is not None:
        values = values * scale.deviations[0] + scale.means[0]
    found = (values[kinds == kind] for kind in range(int(kinds.max()) + 1))
    return tuple(f"{float(each.min()):.3g} to {float(each.max()):.3g}" if len(each) else "-" for each in found)
