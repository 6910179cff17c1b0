"""Data sets and partitioners of the user's own, `package.module:name` in a config, and what is checked of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spatl.data.brought import dataset_of
from spatl.data.dataset import Dataset
from spatl.data.datasets import DATASET_DOOR
from spatl.data.partitioners import PARTITIONER_DOOR
from spatl.errors import DataError, SpatlError, told
from spatl.extensions.references import arguments_for, resolve
from spatl.seeding import seeded_globals
from spatl.tasks.targets import TaskName


def load_users_dataset(reference: str, *, seed: int, options: Mapping[str, Any], task: TaskName) -> Dataset:
    """Return a data set of the user's own.

    Args:
        reference: `"package.module:load"`: called with `seed`, if it takes that, and the options.
        seed: The run's seed, with which the global generators of torch, numpy and Python are seeded meanwhile.
        options: The config's `data.options`.
        task: What the targets are for, as of `task.name`.

    Returns:
        The `Dataset` that the function returned, or what is made of arrays (`spatl.data.brought`).

    Raises:
        DataError: There is no such function, it does not take an option, or what it returns is neither.
    """
    load = resolve(reference, DATASET_DOOR, accepts=callable)
    arguments = arguments_for(
        load, what=f"data set {reference!r}", offered={"seed": seed}, options=options, section="data.options",
        error=DataError,
    )  # fmt: skip
    with seeded_globals(seed, "data"):
        found = load(**arguments)
    return dataset_of(found, name=reference, where=f"data set {reference!r}", task=task)


def split_as_users(reference: str, *, num_clients: int, seed: int, **offered: Any) -> tuple[Tensor, ...]:
    """Return the examples of each client by a partitioner of the user's own.

    Args:
        reference: `"package.module:split"`: called with what follows, as far as it takes it.
        num_clients: How many clients there are.
        seed: The run's seed, with which the global generators of torch, numpy and Python are seeded meanwhile.
        offered: The labels, int64 `[N]`, and what else a partitioner may read.

    Returns:
        One int64 tensor of ascending indices per client; no index is in two of them.

    Raises:
        DataError: There is no such function, it needs something else, or what it returns is no partition.
    """
    split = resolve(reference, PARTITIONER_DOOR, accepts=callable)
    what, num_examples = f"partitioner {reference!r}", len(offered["labels"])
    arguments = arguments_for(
        split, what=what, offered={**offered, "num_clients": num_clients, "seed": seed}, error=DataError
    )
    try:
        with seeded_globals(seed, "partition"):
            found = split(**arguments)
    except SpatlError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"{what} failed: {told(error)}") from error
    if not isinstance(found, Sequence | np.ndarray | Tensor) or isinstance(found, str) or len(found) != num_clients:
        came = f"{len(found)}" if hasattr(found, "__len__") else type(found).__name__
        raise DataError(f"{what} must return one tensor of indices for each of {num_clients} clients, got {came}")
    parts = tuple(_indices(what, client, part, num_examples) for client, part in enumerate(found))
    _check_disjoint(what, parts, num_examples)
    return parts


def _indices(what: str, client: int, part: object, num_examples: int) -> Tensor:
    """The indices of a client, in order."""
    try:
        indices = part if isinstance(part, Tensor) else torch.as_tensor(np.asarray(part))
    except (TypeError, ValueError) as error:
        raise DataError(f"{what}: the indices of client {client} must be whole numbers, got {part!r:.60}") from error
    if indices.dim() == 1 and not len(indices):
        return torch.zeros(0, dtype=torch.int64)
    if indices.dim() != 1 or indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        found = f"{str(indices.dtype).removeprefix('torch.')} {list(indices.shape)}"
        raise DataError(f"{what}: the indices of client {client} must be whole numbers [n], got {found}")
    indices = indices.detach().cpu().to(torch.int64).sort().values
    if int(indices[0]) < 0 or int(indices[-1]) >= num_examples:
        wrong = indices[0] if int(indices[0]) < 0 else indices[-1]
        raise DataError(f"{what}: indices must lie in [0, {num_examples}), client {client} got {int(wrong)}")
    return indices


def _check_disjoint(what: str, parts: Sequence[Tensor], num_examples: int) -> None:
    owner = torch.full((num_examples,), -1)
    for client, part in enumerate(parts):
        taken = part[owner[part] >= 0]
        if len(taken):
            raise DataError(
                f"{what}: an example goes to one client at most, got example {int(taken[0])} for client "
                f"{int(owner[taken[0]])} and for client {client}"
            )
        owner[part] = client
        if len(part) > 1 and bool((part[1:] == part[:-1]).any()):
            twice = part[1:][part[1:] == part[:-1]][0]
            raise DataError(f"{what}: client {client} got example {int(twice)} twice")
