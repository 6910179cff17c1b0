"""The partitioners of flwr-datasets, Flower's library of federated data sets.

The library hands whole rows of a table to each client; here the table is the examples' positions with their labels, so
that what comes back says who owns what. Its partitioners cut the examples of a class in the order of the
table, so the table is shuffled before. The library takes seconds to import and is an optional extra: it is imported
when a config names one of these rows.
"""

import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from spatl.data.checks import missing_package
from spatl.data.partition_request import NOBODY, Integers, Request
from spatl.errors import DataError

_MAX_DRAWS = 1000


def iid(rng: np.random.Generator, request: Request) -> Integers:
    """Deal the examples out at random in equal shares (`IidPartitioner`)."""
    return _assign(rng, request, _library().IidPartitioner(request.num_clients))


def dirichlet(rng: np.random.Generator, request: Request) -> Integers:
    """Skew the labels by Dirichlet(alpha) shares of each class (`DirichletPartitioner`; Yurochkin et al. 2019).

    Raises:
        DataError: In the library's eleven draws there was always a client that is too small.
    """
    settings = {"alpha": float(request.alpha), "min_partition_size": request.min_examples}
    otherwise = (
        f"flwr-dirichlet: flwr-datasets drew 11 times, and some client always had fewer than {request.min_examples}"
        f" examples (num_clients={request.num_clients}, alpha={request.alpha}): raise alpha, lower num_clients or "
        "min_examples, or use dirichlet, which draws 1000 times"
    )
    return _assign(rng, request, _by_label("DirichletPartitioner", rng, request, settings), otherwise=otherwise)


def labels(rng: np.random.Generator, request: Request) -> Integers:
    """Give each client examples of a fixed number of classes (`PathologicalPartitioner`; Li et al., ICDE 2022, #C=k).

    As in that paper, client i has class i modulo the number of classes, and the rest are drawn; each class is shared
    equally among those that have it. What is of a class that nobody has goes to nobody.

    Raises:
        DataError: There are fewer classes than a client should have, or too few examples of one of them.
    """
    _, class_sizes = np.unique(request.labels, return_counts=True)
    if not 1 <= request.labels_per_client <= len(class_sizes):
        raise DataError(
            f"labels_per_client must be in [1, {len(class_sizes)}], the number of classes with examples, got "
            f"{request.labels_per_client}"
        )
    settings = {"num_classes_per_partition": request.labels_per_client, "class_assignment_mode": "first-deterministic"}
    partitioner = _by_label("PathologicalPartitioner", rng, request, settings)
    return _assign(
        rng, request, partitioner,
        otherwise=f"labels: some class has fewer examples than clients that should have it (num_clients="
        f"{request.num_clients}, labels_per_client={request.labels_per_client}): lower num_clients or "
        "labels_per_client",
    )  # fmt: skip


def quantity(rng: np.random.Generator, request: Request) -> Integers:
    """Skew the sizes: shares of all examples are drawn from Dirichlet(alpha) (`SizePartitioner`; Li et al., ICDE 2022).

    Shares are drawn again until no client is too small. Labels are spread at random.

    Raises:
        DataError: No draw gave every client enough.
    """
    total = len(request.labels)
    for _ in range(_MAX_DRAWS):
        shares = rng.dirichlet(np.full(request.num_clients, request.alpha))
        cuts = (np.cumsum(shares) * total).astype(np.int64)
        cuts[-1] = total  # the shares add up to one only nearly
        sizes = np.diff(cuts, prepend=0)
        if sizes.min() >= request.min_examples:
            return _assign(rng, request, _library().SizePartitioner(sizes.tolist()))
    raise DataError(
        f"no quantity partition in {_MAX_DRAWS} draws: some client always had fewer than {request.min_examples} "
        f"examples (num_clients={request.num_clients}, alpha={request.alpha}, N={total}): raise alpha, or lower "
        "num_clients or min_examples"
    )


def _by_label(name: str, rng: np.random.Generator, request: Request, settings: Mapping[str, Any]) -> Any:
    """Make a partitioner of the library that looks at labels."""
    make = getattr(_library(), name)
    return make(num_partitions=request.num_clients, partition_by="label", shuffle=False, seed=_seed(rng), **settings)


def _assign(rng: np.random.Generator, request: Request, partitioner: Any, *, otherwise: str | None = None) -> Integers:
    """Return the owner of each example: the client whose partition of the shuffled table holds its position.

    Raises:
        DataError: The library finds no partition; the message is `otherwise`.
    """
    import datasets  # which flwr-datasets is built on

    positions = rng.permutation(np.arange(len(request.labels)))
    table = {"position": positions, "label": request.labels[positions]}
    partitioner.dataset = datasets.Dataset.from_dict(table)
    owners = np.full(len(request.labels), NOBODY, dtype=np.int64)
    # The library warns of redrawing and of classes that nobody has: the redraws are its business, and
    # `spatl partition` shows the rest.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="flwr_datasets")
        for client in range(request.num_clients):
            try:
                rows = partitioner.load_partition(client).with_format("numpy")[:]
            except ValueError as error:
                if otherwise is None:
                    raise
                raise DataError(otherwise) from error
            owners[rows["position"]] = client
    return owners


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**63))


def _library() -> ModuleType:
    try:
        import flwr_datasets.partitioner  # an optional extra that takes seconds to import
    except ImportError as error:
        advice = "dirichlet, iid and natural need nothing"
        raise missing_package("this partitioner", "flwr-datasets", advice=advice) from error
    module: ModuleType = flwr_datasets.partitioner
    return module
