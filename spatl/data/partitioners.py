"""Partitioners by name: which client has which example. NumPy alone, and what they are taken from when one is asked.

`iid` deals the examples out at random in equal shares. `dirichlet` gives clients different mixes of classes: for each
class, the clients' shares of it are drawn from Dirichlet(alpha), as in Yurochkin et al. (ICML 2019, arXiv 1905.12022)
after Hsu et al. (2019, arXiv 1909.06335); the smaller alpha, the fewer classes a client sees. Shares are drawn again
until no client is too small to learn and be tested on. `natural` makes each natural owner of examples a client, as in
LEAF (Caldas et al., 2018, arXiv 1812.01097), and `file` reads a partition of the user's. These four need nothing but
NumPy; the other rows of the table are partitioners of flwr-datasets.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from spatl.data import flwr_partitioners
from spatl.data.partition_file import read_partition
from spatl.data.partition_request import NOBODY, Integers, Request
from spatl.errors import DataError
from spatl.extensions.references import Door, arguments_for, is_reference, resolve
from spatl.tasks.rows import TASKS, TaskName

PARTITIONER_DOOR: Final = Door(
    "partitioner", "partition.name", "package.module:split", error=DataError,
    expected="a function that returns one tensor of indices per client",
)  # fmt: skip
OWN: Final = "own"
"""The partition of devices each of which has data of its own."""
_MAX_DRAWS = 1000


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
        return (*_settings_of(name, ("alpha", "labels_per_client")), "min_examples")
    return PARTITIONERS[name].settings


def _settings_of(reference: str, known: Iterable[str]) -> tuple[str, ...]:
    """Return which of some settings a partitioner of the user's own reads, as its signature names them."""
    split = resolve(reference, PARTITIONER_DOOR, accepts=callable)
    given = arguments_for(split, what="", offered=dict.fromkeys((*known, *_ALWAYS_OFFERED)), error=DataError)
    return tuple(name for name in known if name in given)


_ALWAYS_OFFERED: Final = ("labels", "num_clients", "seed", "groups")
