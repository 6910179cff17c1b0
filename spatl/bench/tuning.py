"""Tuning of learning rates and momentum for every row alike: one grid, on validation splits, never on a test split.

The score of a pair is the validation accuracy averaged over all rounds, the area under its curve: what a benchmark of
costs rewards is to be accurate early, and a single last round is noise. Of other tasks it is the first metric.

After many steps along one gradient, SGD with momentum m moves 1 / (1 - m) as far per step as without. A pair with
momentum therefore runs at the grid's learning rate times 1 - m: the grid covers the same effective steps with every
momentum, and one that is wide enough for plain SGD is wide enough for all. The server's learning rate is a multiple of
the row's own, since a method with an optimizer on the server has one of another size.
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
        server_factor: A value of `bench.server_factors`: what the row's own `server.learning_rate` is multiplied by.
    """

    rate: float
    momentum: float = 0.0
    server_factor: float = 1.0

    @property
    def learning_rate(self) -> float:
        """Learning rate of its runs, as short as it can be written: 0.2 with momentum 0.9 is 0.02."""
        return float(f"{self.rate * (1 - self.momentum):.12g}") if self.momentum else self.rate

    @property
    def text(self) -> str:
        """Name of the point; the rate alone where there is no momentum, and the server's learning rate is the row's."""
        momentum = f", momentum {self.momentum:g}" if self.momentum else ""
        return f"{self.rate:g}{momentum}" + (f", server x {self.server_factor:g}" if self.server_factor != 1 else "")


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
    def edges(self) -> tuple[str, ...]:
        """Return the settings of the grid at whose edge the best lies, so that a better one may lie beyond.

        Of the server's factors only where there are three or more: two have nothing between them.
        """
        rates = [pair.rate for pair in self.scores]
        factors = {pair.server_factor for pair in self.scores}
        found = ["bench.learning_rates"] if self.best.rate in (min(rates), max(rates)) else []
        if len(factors) > 2 and self.best.server_factor in (min(factors), max(factors)):
            found.append("bench.server_factors")
        return tuple(found)

    @property
    def at_edge(self) -> bool:
        """Return whether the best lies at an edge of the grid."""
        return bool(self.edges)


def tuning_jobs(plan: Plan, directory: Path) -> list[Job]:
    """Return the runs that tuning needs."""
    bench = plan.bench
    rounds = {} if bench.tune_rounds is None else {"rounds": bench.tune_rounds}
    jobs = []
    for row in plan.rows:
        for pair in _grid(plan, row):
            for seed in bench.tune_seeds:
                report = {"split": "validation", "compare_alone": False}
                config = row.config(seed, **_settings(pair, row, seed), report=report, **rounds)
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
        scores = {pair: _score(directory, row.label, pair, plan.bench.tune_seeds) for pair in _grid(plan, row)}
        usable = {pair: score for pair, score in scores.items() if score is not None}
        if not usable:
            raise SpatlError(
                f"{row.label} diverged with every learning rate of bench.learning_rates; give smaller ones"
            )
        best = score.best(usable.values())
        found.append(Tuned(row.label, scores, next(pair for pair, value in usable.items() if value == best)))
    return found


def with_tuned(plan: Plan, tuned: list[Tuned]) -> Plan:
    """Return the plan with every row at its best learning rates and momentum."""
    best, seed = {each.label: each.best for each in tuned}, plan.bench.seeds[0]
    rows = (Row(row.label, merged(row.values, _settings(best[row.label], row, seed))) for row in plan.rows)
    return Plan(tuple(rows), plan.bench)


def _grid(plan: Plan, row: Row) -> list[Pair]:
    """Return the points that a row meets; of equal ones the first is the best."""
    bench = plan.bench
    alone = row.config(bench.seeds[0]).row.shares == "nothing"
    factors = bench.server_factors[:1] if alone else bench.server_factors
    return [
        Pair(rate, momentum, factor)
        for factor in factors
        for momentum in bench.momenta
        for rate in bench.learning_rates
    ]


def _settings(pair: Pair, row: Row, seed: int) -> dict[str, Any]:
    """Return the settings of a point for a row: without momentum there is none of Nesterov's either."""
    training = {"learning_rate": pair.learning_rate, "momentum": pair.momentum}
    settings: dict[str, Any] = {"training": training if pair.momentum else {**training, "nesterov": False}}
    if pair.server_factor != 1:
        rate = row.config(seed).server.learning_rate * pair.server_factor
        settings["server"] = {"learning_rate": float(f"{rate:.12g}")}
    return settings


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
    server = f"-server-{pair.server_factor:g}" if pair.server_factor != 1 else ""
    return directory / "tuning" / label / f"learning-rate-{pair.rate:g}{momentum}{server}" / f"seed-{seed}"
