"""Learning rate by round: a factor that every side computes from the round and the number of rounds."""

import math
from collections.abc import Callable, Mapping
from typing import Final, Literal, Protocol

ScheduleName = Literal["constant", "step", "cosine"]
"""The schedules, as `training.schedule` names them."""


class ScheduleSettings(Protocol):
    """Settings of a schedule, as the section `training` of a config has them.

    Attributes:
        schedule: Its name.
        warmup_rounds: Rounds in which the rate rises before the schedule begins.
        step_rounds: Rounds after which `step` multiplies the rate.
        step_factor: What it multiplies it by.
    """

    @property
    def schedule(self) -> ScheduleName: ...  # noqa: D102
    @property
    def warmup_rounds(self) -> int: ...  # noqa: D102
    @property
    def step_rounds(self) -> int: ...  # noqa: D102
    @property
    def step_factor(self) -> float: ...  # noqa: D102


def rate_factor(settings: ScheduleSettings, server_round: int, num_rounds: int) -> float:
    """Return the factor of `training.learning_rate` in a round, in (0, 1]: never 0, so that every round trains.

    In the w rounds of warm-up it is 1 / (w + 1), 2 / (w + 1), and so on (Goyal et al. 2017, arXiv 1706.02677, by
    rounds); then PyTorch's StepLR, or its CosineAnnealingLR down to 0 after the last round (Loshchilov and Hutter 2017,
    arXiv 1608.03983, equation 5), with a step for each round.

    Args:
        settings: The schedule.
        server_round: The round, from 1; one after the last counts as the last.
        num_rounds: Rounds of the run.
    """
    since, warmup = min(max(server_round, 1), num_rounds), settings.warmup_rounds
    if since <= warmup:
        return since / (warmup + 1)
    return _SCHEDULES[settings.schedule](settings, since - warmup - 1, num_rounds - warmup)


def _constant(settings: ScheduleSettings, passed: int, length: int) -> float:
    return 1.0


def _step(settings: ScheduleSettings, passed: int, length: int) -> float:
    return max(settings.step_factor ** (passed // settings.step_rounds), _LEAST)


def _cosine(settings: ScheduleSettings, passed: int, length: int) -> float:
    return (1 + math.cos(math.pi * passed / length)) / 2


_LEAST = 1e-12  # a rate of 0 has no step weight to divide by

_SCHEDULES: Final[Mapping[ScheduleName, Callable[[ScheduleSettings, int, int], float]]] = {
    "constant": _constant, "step": _step, "cosine": _cosine,
}  # fmt: skip
"""What each makes of the rounds that passed since the warm-up, and of those that there are after it."""
