"""Tuning of learning rate and momentum for every row alike: the same grid, on validation splits, never on a test split.

The score of a pair is the validation accuracy averaged over all rounds, the area under its curve: what a benchmark of
costs rewards is to be accurate early, and a single last round is noise. Of other tasks it is the first metric.

After many steps along one gradient, SGD with momentum m moves 1 / (1 - m) as far per step as without. A pair with
momentum therefore runs at the grid's learning rate times 1 - m: the grid covers the same effective steps with every
momentum, and one that is wide enough for plain SGD is wide enough for all.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spatl.bench.costs import trajectory
from spatl.bench.jobs import Job
from spatl.bench.plan import Plan, Row, merged
from spatl.bench.score import score_of
from spatl.errors import SpatlError
from spatl.runs.files import HISTORY, SUMMARY
from spatl.runs.records import mean, read_lines

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """Point of the grid.

    Attributes:
        rate: A value of `bench.learning_rates`: the learning rate without momentum.
        momentum: A value of `bench.momenta`.
    """

    rate: float
    momentum: float = 0.0

    @property
    def learning_rate(self) -> float:
        """Learning rate of its runs, as short as it can be written: 0.2 with momentum 0.9 is 0.02."""
        return float(f"{self.rate * (1 - self.momentum):.12g}") if self.momentum else self.rate

    @property
    def text(self) -> str:
        """Name of the pair; the rate alone where there is no momentum."""
        return f"{self.rate:g}, momentum {self.momentum:g}" if self.momentum else f"{self.rate:g}"


@dataclass(frozen=True)
class Tuned:
    """Best point of the grid for one row, and the accuracies of all points.

    Attributes:
        label: The row.
        scores: The score of each pair, None for one with which a run stopped (diverged).
        best: The pair with the best score.
    """

    label: str
    scores: Mapping[Pair, float | None]
    best: Pair

    @property
    def at_edge(self) -> bool:
        """Return whether the best rate lies at the edge of the grid, so that a better one may lie beyond."""
        rates = [pair.rate for pair in self.scores]
        return self.best.rate in (min(rates), max(rates))


def tuning_jobs(plan: Plan, directory: Path) -> list[Job]:
    """Return the runs that tuning needs."""
    bench = plan.bench
    rounds = {} if bench.tune_rounds is None else {"rounds": bench.tune_rounds}
    jobs = []
    for row in plan.rows:
        for pair in _grid(plan):
            for seed in bench.tune_seeds:
                config = row.config(
                    seed, training=_settings(pair), report={"split": "validation", "compare_alone": False}, **rounds
                )
                path = _directory(directory, row.label, pair, seed)
                jobs.append(Job(f"{row.label}, learning rate {pair.text}, seed {seed}", path, config.to_json()))
    return jobs


def warn_of_replaced_momenta(plan: Plan) -> None:
    """Log which rows have a momentum that the grid lacks, and will not be run with it."""
    own = {row.label: row.config(plan.bench.seeds[0]).training.momentum for row in plan.rows}
    lost = [f"{label} ({momentum:g})" for label, momentum in own.items() if momentum not in plan.bench.momenta]
    if lost:
        logger.warning("tuning replaces the momentum of %s; bench.momenta does not hold it", ", ".join(lost))


def tuned_rows(plan: Plan, directory: Path) -> list[Tuned]:
    """Return the best pair of each row, read from the finished tuning runs.

    Raises:
        SpatlError: No learning rate of the grid let a row finish.
    """
    found, score = [], score_of(plan.first)
    for row in plan.rows:
        scores = {pair: _score(directory, row.label, pair, plan.bench.tune_seeds) for pair in _grid(plan)}
        usable = {pair: score for pair, score in scores.items() if score is not None}
        if not usable:
            raise SpatlError(
                f"{row.label} diverged with every learning rate of bench.learning_rates; give smaller ones"
            )
        best = score.best(usable.values())
        found.append(Tuned(row.label, scores, next(pair for pair, value in usable.items() if value == best)))
    return found


def with_tuned(plan: Plan, tuned: list[Tuned]) -> Plan:
    """Return the plan with every row at its best learning rate and momentum."""
    best = {each.label: each.best for each in tuned}
    rows = (Row(row.label, merged(row.values, {"training": _settings(best[row.label])})) for row in plan.rows)
    return Plan(tuple(rows), plan.bench)


def _grid(plan: Plan) -> list[Pair]:
    return [Pair(rate, momentum) for momentum in plan.bench.momenta for rate in plan.bench.learning_rates]


def _settings(pair: Pair) -> dict[str, Any]:
    """Return the training settings of a pair: without momentum there is none of Nesterov's either."""
    settings = {"learning_rate": pair.learning_rate, "momentum": pair.momentum}
    return settings if pair.momentum else {**settings, "nesterov": False}


def _score(directory: Path, label: str, pair: Pair, seeds: tuple[int, ...]) -> float | None:
    scores = []
    for seed in seeds:
        path = _directory(directory, label, pair, seed)
        points = trajectory(read_lines(path / HISTORY))
        score = mean(point.accuracy for point in points if point.rounds > 0)
        if score is None or not (path / SUMMARY).exists():
            return None
        scores.append(score)
    return mean(scores)


def _directory(directory: Path, label: str, pair: Pair, seed: int) -> Path:
    momentum = f"-momentum-{pair.momentum:g}" if pair.momentum else ""
    return directory / "tuning" / label / f"learning-rate-{pair.rate:g}{momentum}" / f"seed-{seed}"
