"""Request to a partitioner: the labels and owners of the examples, and the settings of the clients' shares."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

NOBODY = -1
"""The owner of an example that no client gets."""


@dataclass(frozen=True, eq=False)
class Request:
    """The settings of one partition; each partitioner reads those that concern it.

    Attributes:
        labels: `[N]`.
        groups: `[N]`, whose each example is by nature; None when nothing is known of it.
        num_clients: At least 1.
        alpha: Concentration of a Dirichlet distribution.
        labels_per_client: How many classes a client sees.
        path: The file that says who gets what, for `file`.
        min_examples: What every client gets at least; at least 1.
    """

    labels: Integers
    groups: Integers | None
    num_clients: int
    alpha: float
    labels_per_client: int
    min_examples: int
    path: str | None = None
