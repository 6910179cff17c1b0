"""Partition of one data set among clients, in which no example goes to two of them.

`iid` deals the examples out at random in equal shares. `dirichlet` gives clients different mixes of classes: for each
class, the clients' shares of it are drawn from Dirichlet(alpha), as in Yurochkin et al. (ICML 2019, arXiv 1905.12022)
after Hsu et al. (2019, arXiv 1909.06335); the smaller alpha, the fewer classes a client sees. Shares are drawn again
until no client is too small to learn and be tested on. `natural` makes each natural owner of examples a client, as in
LEAF (Caldas et al., 2018, arXiv 1812.01097), and `file` reads a partition of the user's. These four need nothing but
NumPy; the other rows of the table are partitioners of flwr-datasets.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spatl.data import flwr_partitioners
from spatl.data.own import OWN
from spatl.data.partition_file import read_partition
from spatl.data.partition_request import NOBODY, Integers, Request
from spatl.data.users import PARTITIONER_DOOR, settings_of, split_as_users
from spatl.errors import DataError, SpatlError, told
from spatl.extensions.references import is_reference, row_of
from spatl.seeding import numpy_generator
from spatl.tasks.targets import TASKS, TaskName

_MAX_DRAWS = 1000
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
        parts = tuple(torch.from_numpy(np.flatnonzero(owners == client)) for client in range(num_clients))
    smallest = min(range(num_clients), key=lambda client: len(parts[client]))
    if len(parts[smallest]) < min_examples:
        raise DataError(
            f"the partition {name} gives client {smallest} {len(parts[smallest])} of at least {min_examples} examples: "
            "lower num_clients or min_examples, or take another seed"
        )
    return parts


def check_partition(name: str, task: TaskName) -> None:
    """Raise where a partitioner goes by labels and the examples of a task have none; a regression's go by tenths.

    Raises:
        DataError: That is so.
    """
    entry = PARTITIONERS.get(name)
    if entry is not None and entry.by_label and not (TASKS[task].labels or TASKS[task].is_scaled):
        raise DataError(
            f"partition.name: {name} shares examples out by their classes, which those of {task} have not: take iid, "
            "quantity, natural (by owners), or file"
        )


def partition_settings(name: str) -> tuple[str, ...]:
    """Return the settings of the config's section `partition` that a partitioner reads, beside the number of clients.

    One of the user's is imported for that: it reads those that its signature names, and `min_examples`.

    Raises:
        DataError: The user's is not there, or none.
    """
    if is_reference(name):
        return (*settings_of(name, ("alpha", "labels_per_client")), "min_examples")
    return PARTITIONERS[name].settings


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


Partitioner = Callable[[np.random.Generator, Request], Integers]


@dataclass(frozen=True)
class PartitionerEntry:
    """Entry of `PARTITIONERS`.

    Attributes:
        partitioner: `partitioner(rng, request)` returns the client `[N]` of each example, or `NOBODY`.
        description: One line saying how the clients differ.
        settings: The settings of the config's section `partition` that it reads, beside the number of clients.
        source: Where it is from.
        complete: Whether every example goes to a client.
        by_label: Whether it goes by the examples' classes; of a regression by tenths of its first value.
    """

    partitioner: Partitioner
    description: str
    settings: tuple[str, ...] = ("min_examples",)
    source: str = "built in"
    complete: bool = True
    by_label: bool = False


def _iid(rng: np.random.Generator, request: Request) -> Integers:
    return rng.permutation(np.arange(len(request.labels)) % request.num_clients)


def _dirichlet(rng: np.random.Generator, request: Request) -> Integers:
    labels, num_clients = request.labels, request.num_clients
    classes, class_sizes = np.unique(labels, return_counts=True)
    counts = _draw_counts(rng, class_sizes, num_clients, request.alpha, request.min_examples)
    owners = np.empty_like(labels)
    for label, of_clients in zip(classes, counts, strict=True):
        owners[labels == label] = rng.permutation(np.repeat(np.arange(num_clients), of_clients))
    return owners


def _draw_counts(
    rng: np.random.Generator, class_sizes: Integers, num_clients: int, alpha: float, min_examples: int
) -> Integers:
    """Return how many examples of each class each client gets, `[classes, num_clients]`."""
    best_size, best_client = -1, -1
    for _ in range(_MAX_DRAWS):
        shares = rng.dirichlet(np.full(num_clients, alpha), size=len(class_sizes))
        cuts = (np.cumsum(shares, axis=1) * class_sizes[:, None]).astype(np.int64)
        cuts[:, -1] = class_sizes  # the shares add up to one only nearly
        counts = np.diff(cuts, axis=1, prepend=0)
        sizes = counts.sum(axis=0)
        if sizes.min() >= min_examples:
            return counts
        if sizes.min() > best_size:
            best_size, best_client = int(sizes.min()), int(sizes.argmin())
    raise DataError(
        f"no dirichlet partition in {_MAX_DRAWS} draws: in the best one the smallest client, {best_client}, had "
        f"{best_size} of at least {min_examples} examples (num_clients={num_clients}, alpha={alpha}, "
        f"min_examples={min_examples}, N={class_sizes.sum()}): raise alpha, or lower num_clients or min_examples"
    )


def _natural(rng: np.random.Generator, request: Request) -> Integers:
    """Make each natural owner of examples a client, in the order of the owners' numbers.

    Where there are more owners with enough examples than clients, the clients are drawn from them; what belongs to the
    others goes to nobody.
    """
    if request.groups is None:
        raise DataError(
            "natural: the data set does not say whose its examples are; femnist does, folder where it "
            "has one folder per owner, huggingface with data.options.group, and npz with an array groups"
        )
    owners, sizes = np.unique(request.groups, return_counts=True)
    eligible = owners[sizes >= request.min_examples]
    if len(eligible) < request.num_clients:
        raise DataError(
            f"natural: {len(eligible)} of {len(owners)} natural owners have at least {request.min_examples} examples, "
            f"which makes no {request.num_clients} clients: lower num_clients or min_examples"
        )
    drawn = np.sort(rng.choice(eligible, request.num_clients, replace=False))
    return np.where(np.isin(request.groups, drawn), np.searchsorted(drawn, request.groups), NOBODY)


def _filed(rng: np.random.Generator, request: Request) -> Integers:
    if request.path is None:
        raise DataError("file: partition.path must name a .csv or .json file that says whose each example is")
    number = len(request.labels)
    return read_partition(request.path, num_examples=number, num_clients=request.num_clients).owners


def _own(rng: np.random.Generator, request: Request) -> Integers:
    raise DataError("own: no data set is shared out where each device has its own (spatl deploy)")


def _flwr(
    partitioner: Partitioner, name: str, description: str, *settings: str, by_label: bool = False
) -> PartitionerEntry:
    settings, source = (*settings, "min_examples"), f"flwr-datasets, {name}"
    return PartitionerEntry(partitioner, description, settings, source, by_label=by_label)


PARTITIONERS: dict[str, PartitionerEntry] = {
    "dirichlet": PartitionerEntry(
        partitioner=_dirichlet,
        description="label skew: Dirichlet(alpha) shares of each class",
        settings=("alpha", "min_examples"),
        source="Yurochkin et al. 2019; built in",
        by_label=True,
    ),
    "iid": PartitionerEntry(
        partitioner=_iid,
        description="no skew: equal shares at random",
    ),
    "file": PartitionerEntry(
        partitioner=_filed,
        description="a file of yours says whose each example is",
        settings=("path", "min_examples"),
        complete=False,
    ),
    "flwr-dirichlet": _flwr(
        flwr_partitioners.dirichlet,
        "DirichletPartitioner",
        "label skew, as Flower draws it",
        "alpha",
        by_label=True,
    ),
    "flwr-iid": _flwr(flwr_partitioners.iid, "IidPartitioner", "no skew, as Flower deals it out"),
    "labels": PartitionerEntry(
        partitioner=flwr_partitioners.labels,
        description="label skew: each client sees labels_per_client classes",
        settings=("labels_per_client", "min_examples"),
        source="Li et al. 2022 (NIID-Bench, #C=k); flwr-datasets, PathologicalPartitioner",
        complete=False,
        by_label=True,
    ),
    "natural": PartitionerEntry(
        partitioner=_natural,
        description="each client is one of the data set's own groups, e.g. a writer",
        source="Caldas et al. 2018 (LEAF); built in",
        complete=False,
    ),
    OWN: PartitionerEntry(
        partitioner=_own,
        description="each device has data of its own; for deployments",
        complete=False,
    ),
    "quantity": PartitionerEntry(
        partitioner=flwr_partitioners.quantity,
        description="quantity skew: sizes from Dirichlet(alpha), labels at random",
        settings=("alpha", "min_examples"),
        source="Li et al. 2022 (NIID-Bench); flwr-datasets, SizePartitioner",
    ),
}
