"""Weights of clients in a federation whose server takes their word for how many examples they have.

By default a client weighs as many examples as it registered. Where the server cannot know them, one that says it has a
million would be the average alone: there no client weighs more than a share of the whole.
"""

import logging
from collections.abc import Mapping

from spatl.config.experiment import ExperimentConfig

logger = logging.getLogger(__name__)

_TIMES_AN_EQUAL_SHARE = 2.0  # which any client may have, however few there are


def largest_share(config: ExperimentConfig) -> float:
    """The largest share that a client can have in all averages; 1 where the server knows who has how much."""
    return config.server.max_weight if config.has_own_data else 1.0


def bounded_weights(
    num_examples: Mapping[int, int], max_weight: float, *, known: Mapping[int, int] | None = None
) -> dict[int, int]:
    """Return what those clients weigh that say they have more than may count, and say who they are.

    The bound is one number B for all of them, such that B is the given share of the sum of min(n_i, B). What clients of
    a run that goes on weigh stays as it is, so that the shares of all of them change by one factor.

    Args:
        num_examples: Training examples of each client, as it says (n_i).
        max_weight: The largest share in (0, 1]; no less than twice an equal one counts.
        known: What clients weigh that were there before.

    Returns:
        The weights by client, at least 1, of those that are bounded alone.
    """
    known = known or {}
    everyone = {**num_examples, **known}
    share = max(max_weight, _TIMES_AN_EQUAL_SHARE / len(everyone)) if everyone else 1.0
    bound = _bound(sorted(everyone.values(), reverse=True), share)
    if bound is None:
        return {}
    bounded = {
        client: max(1, bound)
        for client, number in sorted(num_examples.items())
        if client not in known and number > bound
    }
    total = sum(everyone.values())
    for client, weight in bounded.items():
        logger.warning(
            "client %d says that it has %s training examples, %.3g %% of all: it counts as %s, for nobody's word "
            "counts more than %.3g %% (server.max_weight)",
            client, f"{num_examples[client]:,}", 100 * num_examples[client] / total, f"{weight:,}", 100 * share,
            extra={"client": client},
        )  # fmt: skip
    return bounded


def _bound(descending: list[int], share: float) -> int | None:
    """The largest weight that is not above a share of the sum of all, each up to it; None where none is above."""
    if not descending or share >= 1 or descending[0] <= share * sum(descending):
        return None
    rest = sum(descending)
    for above, number in enumerate(descending, start=1):
        rest -= number
        if above * share >= 1:
            break
        bound = share * rest / (1 - above * share)
        if above == len(descending) or descending[above] <= bound:
            return int(bound)
    return descending[-1]
