"""Choice of the filters that are blamed for an example, and of those that controls blame instead."""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from spatl.errors import SpatlError
from spatl.saliency.filters import Filters


def most_salient(scores: Tensor, k: int) -> Tensor:
    """Return bool [N, F]: the k filters of each example with the highest scores; of equal ones the first.

    Args:
        scores: `[N, F]`.
        k: In [0, F].
    """
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, order, value=True)


def least_salient(scores: Tensor, k: int) -> Tensor:
    """Return bool [N, F]: the k filters of each example with the lowest scores."""
    return most_salient(-scores, k)


def random_filters(scores: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Return bool [N, F]: k filters of each example, drawn evenly from all."""
    return most_salient(torch.rand(scores.shape, generator=generator), k)


def random_in_the_same_layers(scores: Tensor, k: int, filters: Filters, generator: torch.Generator) -> Tensor:
    """Return bool [N, F]: filters drawn evenly within each layer, as many of each as the most salient k have there.

    Which layer a filter lies in tells much of how salient it is; this control has the same layers.
    """
    chosen, drawn = most_salient(scores, k), torch.rand(scores.shape, generator=generator)
    for layer in filters.layers:
        ranks = drawn[:, layer.places].argsort(1).argsort(1)
        chosen[:, layer.places] = ranks < chosen[:, layer.places].sum(1, keepdim=True)
    return chosen


Control = Callable[[Tensor, int, Filters, torch.Generator], Tensor]
CONTROLS: Final[Mapping[str, Control]] = {
    "most salient": lambda scores, k, filters, generator: most_salient(scores, k),
    "random": lambda scores, k, filters, generator: random_filters(scores, k, generator),
    "random, same layers": random_in_the_same_layers,
    "least salient": lambda scores, k, filters, generator: least_salient(scores, k),
}
"""Ways to choose k filters of each example: `(scores [N, F], k, filters, generator) -> bool [N, F]`."""


def check_k(k: int, filters: Filters) -> None:
    """Raise unless a network has so many filters.

    Raises:
        SpatlError: It has not.
    """
    if not 1 <= k <= filters.num_filters:
        raise SpatlError(f"the number of filters must be in [1, {filters.num_filters}], got {k}")
