"""Shares of the validation and test examples that a data set came with, by the partition of its training examples.

A client should be judged on data like its own. What is an owner's stays with it; otherwise each class's examples are
dealt out in proportion to how many training examples of it each client has, so that whoever has none of a class is not
tested on it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.data.dataset import SPLITS, Dataset
from spatl.seeding import numpy_generator


def training_indices(dataset: Dataset) -> Tensor:
    """Return the indices `[n]` of the examples that partitioners deal out: all of them, or those in `train`."""
    if dataset.splits is None:
        return torch.arange(len(dataset))
    return torch.nonzero(dataset.splits == SPLITS.index("train")).flatten()


def with_official(
    dataset: Dataset, parts: Sequence[Tensor], *, seed: int, by_owner: bool, splits: Sequence[str] = SPLITS[1:]
) -> tuple[Tensor, ...]:
    """Return each client's examples with its share of those that are in `validation` and `test`.

    Args:
        dataset: The whole data set.
        parts: Each client's training examples.
        seed: The run's seed.
        splits: Those of which clients get shares.
        by_owner: Whether each client is one of the data set's groups, and gets exactly what is its own.

    Returns:
        Ascending indices; no index is in two of them.
    """
    if dataset.splits is None:
        return tuple(parts)
    shares = [list(part.tolist()) for part in parts]
    rng = numpy_generator(seed, "official-splits")
    for split in splits:
        indices = torch.nonzero(dataset.splits == SPLITS.index(split)).flatten()
        if by_owner and dataset.groups is not None:
            client_of = {int(dataset.groups[part[0]]): client for client, part in enumerate(parts)}
            for index in indices.tolist():
                if (client := client_of.get(int(dataset.groups[index]))) is not None:
                    shares[client].append(index)
            continue
        for client, dealt in enumerate(_dealt(dataset, parts, indices, rng)):
            shares[client] += dealt
    return tuple(torch.tensor(sorted(share), dtype=torch.int64) for share in shares)


def _dealt(dataset: Dataset, parts: Sequence[Tensor], indices: Tensor, rng: np.random.Generator) -> list[list[int]]:
    """Return the clients' shares of some examples: of each class, as its training examples are shared."""
    strata = dataset.strata()
    counts = np.stack([strata[part].bincount(minlength=int(strata.max()) + 1).numpy() for part in parts])
    labels = strata[indices].numpy()
    dealt: list[list[int]] = [[] for _ in parts]
    due = np.zeros(len(parts))  # what each client is owed of earlier classes, so that rounding favours nobody
    for label in np.unique(labels):
        examples = rng.permutation(indices.numpy()[labels == label])
        weights = counts[:, label] if counts[:, label].any() else counts.sum(axis=1)
        due += len(examples) * weights / weights.sum()
        for example in examples:
            owed = np.where(weights > 0, due, -np.inf)
            client = int(owed.argmax())
            due[client] -= 1
            dealt[client].append(int(example))
    for client in (client for client, share in enumerate(dealt) if not share):
        _give_one(dealt, client, strata, counts[client])
    return dealt


def _give_one(dealt: list[list[int]], client: int, labels: Tensor, counts: NDArray[np.int64]) -> None:
    """Move to a client an example of its most frequent class, from the client that has most of all, and two or more."""
    for label in np.argsort(-counts, kind="stable"):
        if not counts[label]:
            return
        for donor in sorted(range(len(dealt)), key=lambda each: -len(dealt[each])):
            found = [index for index in dealt[donor] if int(labels[index]) == label]
            if found and len(dealt[donor]) > 1:
                dealt[donor].remove(found[-1])
                dealt[client].append(found[-1])
                return
