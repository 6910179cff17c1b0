"""Places of clients among all: how far one is from the middle, in what is usual, whatever a few sick ones say."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from spatl.errors import SpatlError

FEWEST: Final = 5
"""Clients that say what is usual, at least."""
_OF_A_NORMAL = 1.4826  # the standard deviation of a normal distribution, in medians of absolute deviations
_MEAN_OF_A_NORMAL = 1.2533  # and in means of them


def places(scores: Mapping[int, float | None], *, worse: int = 1) -> dict[int, float | None]:
    """Return how far each client is from the median, in robust standard deviations; what is worse is above 0.

    Median and median absolute deviation, so that fewer than half of the clients cannot move what is usual far. Where
    half of the clients are equal, the mean absolute deviation takes its place; where all are, everybody's place is 0.

    Args:
        scores: By client; one of None has no place, and counts for nobody's.
        worse: 1 where more is worse, -1 where less is.
    """
    known = {client: value for client, value in scores.items() if value is not None}
    if len(known) < FEWEST:
        return dict.fromkeys(scores)
    values = np.array([known[client] for client in known])
    away = worse * (values - np.median(values))
    unit = _OF_A_NORMAL * float(np.median(np.abs(away))) or _MEAN_OF_A_NORMAL * float(np.mean(np.abs(away))) or 1.0
    found = dict(zip(known, (away / unit).tolist(), strict=True))
    return {client: found.get(client) for client in scores}


def check_number(number: int) -> None:
    """Raise unless there are clients enough to say what is usual.

    Raises:
        SpatlError: There are not.
    """
    if number < FEWEST:
        raise SpatlError(
            f"a diagnosis compares each client with the others and needs findings of at least {FEWEST} clients, "
            f"got {number}"
        )
