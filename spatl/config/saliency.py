"""Section that `spatl saliency experiment` alone reads: which claims, on how many networks, with which filters."""

from typing import Annotated, Final, Literal

from pydantic import Field, field_validator

from spatl.config.sections import Count, Positive, Section, some_and_distinct

Claim = Literal["switching-off", "repair", "neighbours", "input-maps", "depth"]
CLAIMS: Final[tuple[Claim, ...]] = ("switching-off", "repair", "neighbours", "input-maps", "depth")
"""Experiments by name, in the order in which they are made."""


class SaliencyConfig(Section):
    """Experiments on parameter-space saliency (`spatl saliency experiment`); a run does not read them."""

    claims: tuple[Claim, ...] = CLAIMS
    """Which experiments are made."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (1, 2, 3)
    """One network is trained with each, on a partition of its own."""
    epochs: Count = 20
    """Of training, by the settings of `training`."""
    top_k: tuple[Count, ...] = (1, 3, 10, 30)
    """Numbers of filters that are switched off."""
    repaired: Count = 10
    """How many filters are trained on one example."""
    repair_lengths: tuple[Positive, ...] = (0.003, 0.01, 0.03)
    """Lengths of that step, as shares of the length of all weights that have filters."""
    boosted: Count = 10
    """How many filters an input map boosts."""
    neighbours: Count = 5
    """How many neighbours of an error are looked at."""
    masked: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.05, 0.1, 0.2)
    """Shares of the pixels that are masked."""
    draws: Count = 5
    """How often the random controls are drawn."""
    most_errors: Count = 400
    """Errors of a network that are looked at; of more, the first."""
    most_repaired: Count = 60
    """Of those, how many are repaired and mapped: each takes passes of its own."""

    _distinct = field_validator("claims", "seeds", "top_k", "repair_lengths", "masked")(some_and_distinct)
