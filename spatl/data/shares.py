"""Partition of one data set among clients, in which no example goes to two of them (`spatl.data.partitioners`)."""

import numpy as np
import torch
from torch import Tensor

from spatl.data.partition_request import Integers, Request
from spatl.data.partitioners import PARTITIONER_DOOR, PARTITIONERS
from spatl.data.users import split_as_users
from spatl.errors import DataError, SpatlError, told
from spatl.extensions.references import is_reference, row_of
from spatl.seeding import numpy_generator

_ALPHA_LOW, _ALPHA_HIGH = 1e-3, 1e6  # outside it the shares are no longer finite, or no longer random


def partition(
    labels: Tensor,
    *,
    name: str,
    num_clients: int,
    seed: int,
    alpha: float,
    labels_per_client: int,
    min_examples: int,
    groups: Tensor | None = None,
    path: str | None = None,
) -> tuple[Tensor, ...]:
    """Return each client's examples.

    Args:
        labels: `[N]`, int64.
        name: A key of `PARTITIONERS`, or `"package.module:split"` for a function of the user's (`spatl.data.users`).
        num_clients: How many clients, at least 1.
        seed: The run's seed.
        alpha: Concentration of the Dirichlet distribution, in [0.001, 1000000], for the partitioners that draw from it.
        labels_per_client: How many classes a client sees under `labels`, at least 1.
        min_examples: What every client gets at least; at least 1.
        groups: `[N]`, int64, whose each example is by nature, for `natural`.
        path: The file that says who gets what, for `file`.

    Returns:
        One int64 tensor of ascending indices per client; no index is in two of them, and every index in `[0, N)` is in
        one where the partitioner's entry says that it is complete.

    Raises:
        DataError: The name is unknown, a value is out of range, a package is missing, or the examples do not suffice
            for the clients.
    """
    _check_values(labels, num_clients=num_clients, alpha=alpha, min_examples=min_examples)
    if is_reference(name):
        parts = split_as_users(
            name, num_clients=num_clients, seed=seed, labels=labels.cpu(), alpha=alpha,
            labels_per_client=labels_per_client, min_examples=min_examples, groups=groups,
        )  # fmt: skip
    else:
        request = Request(
            labels=labels.cpu().numpy(),
            groups=None if groups is None else groups.cpu().numpy(),
            num_clients=num_clients,
            alpha=alpha,
            labels_per_client=labels_per_client,
            min_examples=min_examples,
            path=path,
        )
        owners = _owners(name, request, seed)
        order = np.argsort(owners, kind="stable")  # one pass for all clients, whose examples stay ascending
        ends = np.searchsorted(owners, np.arange(num_clients + 1), sorter=order)
        parts = tuple(map(torch.from_numpy, np.split(order.astype(np.int64, copy=False), ends)[1:-1]))
    smallest = min(range(num_clients), key=lambda client: len(parts[client]))
    if len(parts[smallest]) < min_examples:
        raise DataError(
            f"the partition {name} gives client {smallest} {len(parts[smallest])} of at least {min_examples} examples: "
            "lower num_clients or min_examples, or take another seed"
        )
    return parts


def _owners(name: str, request: Request, seed: int) -> Integers:
    """Return the client `[N]` of each example by a row of the table."""
    row = row_of(name, PARTITIONERS, PARTITIONER_DOOR)
    try:
        return row.partitioner(numpy_generator(seed, "partition"), request)
    except SpatlError:
        raise
    except Exception as error:  # of a library that a partitioner is taken from
        raise DataError(f"the partitioner {name} failed: {told(error)}") from error


def _check_values(labels: Tensor, *, num_clients: int, alpha: float, min_examples: int) -> None:
    """Raise a `DataError` unless the labels are int64 `[N]`, and the settings in range and within their number."""
    if labels.dim() != 1 or labels.dtype != torch.int64:
        raise DataError(
            f"labels must be int64 [N], got {str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}"
        )
    if num_clients < 1 or min_examples < 1:
        raise DataError(f"num_clients and min_examples must be at least 1, got {num_clients} and {min_examples}")
    if not _ALPHA_LOW <= alpha <= _ALPHA_HIGH:
        raise DataError(f"alpha must be in [{_ALPHA_LOW:g}, {_ALPHA_HIGH:.0f}], got {alpha}")
    if num_clients * min_examples > len(labels):
        raise DataError(
            f"{num_clients} clients with at least {min_examples} examples each need {num_clients * min_examples} "
            f"examples, got {len(labels)}: lower num_clients or min_examples"
        )
