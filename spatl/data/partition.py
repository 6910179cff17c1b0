"""Cutting one data set into clients, each example going to exactly one of them.

`iid` deals the examples out at random in equal shares. `dirichlet` gives clients different mixes of classes: for each
class, the clients' shares of it are drawn from Dirichlet(alpha), as in Yurochkin et al. (ICML 2019, arXiv 1905.12022)
after Hsu et al. (2019, arXiv 1909.06335); the smaller alpha, the fewer classes a client sees. Shares are drawn again
until no client is too small to learn and be tested on.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.errors import DataError, did_you_mean
from spatl.seeding import numpy_generator

_MAX_DRAWS = 1000
_ALPHA_LOW, _ALPHA_HIGH = 1e-3, 1e6  # outside it the shares are no longer finite, or no longer random

_Integers = NDArray[np.int64]


def partition(
    labels: Tensor, *, name: str, num_clients: int, seed: int, alpha: float = 0.5, min_examples: int = 10
) -> tuple[Tensor, ...]:
    """Return each client's examples.

    Args:
        labels: `[N]`, int64.
        name: A key of `PARTITIONERS`.
        num_clients: How many clients, at least 1.
        seed: The run's seed.
        alpha: Concentration of the Dirichlet distribution, in [0.001, 1000000]; `iid` ignores it.
        min_examples: What every client gets at least; at least 1.

    Returns:
        One int64 tensor of ascending indices per client; every index in `[0, N)` is in exactly one of them.

    Raises:
        DataError: The name is unknown, a value is out of range, or the examples do not suffice for the clients.
    """
    if name not in PARTITIONERS:
        suggestion = did_you_mean(str(name), PARTITIONERS)
        raise DataError(f"unknown partitioner {name!r}{suggestion}; known: {', '.join(sorted(PARTITIONERS))}")
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
    rng = numpy_generator(seed, "partition")
    owners = PARTITIONERS[name](rng, labels.cpu().numpy(), num_clients, alpha, min_examples)
    return tuple(torch.from_numpy(np.flatnonzero(owners == client)) for client in range(num_clients))


Partitioner = Callable[[np.random.Generator, _Integers, int, float, int], _Integers]
"""`partitioner(rng, labels, num_clients, alpha, min_examples)` returns the client `[N]` of each example."""


def _iid(rng: np.random.Generator, labels: _Integers, num_clients: int, alpha: float, min_examples: int) -> _Integers:
    return rng.permutation(np.arange(len(labels)) % num_clients)


def _dirichlet(
    rng: np.random.Generator, labels: _Integers, num_clients: int, alpha: float, min_examples: int
) -> _Integers:
    classes, class_sizes = np.unique(labels, return_counts=True)
    counts = _draw_counts(rng, class_sizes, num_clients, alpha, min_examples)
    owners = np.empty_like(labels)
    for label, of_clients in zip(classes, counts, strict=True):
        owners[labels == label] = rng.permutation(np.repeat(np.arange(num_clients), of_clients))
    return owners


def _draw_counts(
    rng: np.random.Generator, class_sizes: _Integers, num_clients: int, alpha: float, min_examples: int
) -> _Integers:
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


PARTITIONERS: dict[str, Partitioner] = {"dirichlet": _dirichlet, "iid": _iid}
