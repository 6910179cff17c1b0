"""Learning rates chosen for every row alike: the same grid, on validation splits, never on a test split.

The score of a learning rate is the validation accuracy averaged over all rounds, the area under its curve: what a
benchmark of costs rewards is to be accurate early, and a single last round is noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from spatl.bench.costs import trajectory
from spatl.bench.jobs import Job
from spatl.bench.plan import Plan, Row, merged
from spatl.errors import SpatlError
from spatl.history import mean, read_lines


@dataclass(frozen=True)
class Tuned:
    """What tuning found for one row.

    Attributes:
        label: The row.
        scores: The score by learning rate, None for one with which a run stopped (diverged).
        best: The learning rate with the highest score.
    """

    label: str
    scores: Mapping[float, float | None]
    best: float

    @property
    def at_edge(self) -> bool:
        """Whether the best lies at the edge of the grid, so that a better one may lie beyond."""
        return self.best in (min(self.scores), max(self.scores))


def tuning_jobs(plan: Plan, directory: Path) -> list[Job]:
    """Return the runs that tuning needs."""
    bench = plan.bench
    rounds = {} if bench.tune_rounds is None else {"rounds": bench.tune_rounds}
    jobs = []
    for row in plan.rows:
        for rate in bench.learning_rates:
            for seed in bench.tune_seeds:
                config = row.config(
                    seed, training={"learning_rate": rate}, report={"split": "validation", "compare_alone": False},
                    **rounds,
                )  # fmt: skip
                path = _directory(directory, row.label, rate, seed)
                jobs.append(Job(f"{row.label}, learning rate {rate:g}, seed {seed}", path, config.to_json()))
    return jobs


def tuned_rows(plan: Plan, directory: Path) -> list[Tuned]:
    """Read what the finished tuning runs say.

    Raises:
        SpatlError: No learning rate of the grid let a row finish.
    """
    found = []
    for row in plan.rows:
        scores = {rate: _score(directory, row.label, rate, plan.bench.tune_seeds) for rate in plan.bench.learning_rates}
        usable = {rate: score for rate, score in scores.items() if score is not None}
        if not usable:
            raise SpatlError(
                f"{row.label} diverged with every learning rate of bench.learning_rates; give smaller ones"
            )
        found.append(Tuned(row.label, scores, max(usable, key=lambda rate: usable[rate])))
    return found


def with_tuned(plan: Plan, tuned: list[Tuned]) -> Plan:
    """Return the plan with every row at its best learning rate."""
    best = {each.label: each.best for each in tuned}
    rows = (Row(row.label, merged(row.values, {"training": {"learning_rate": best[row.label]}})) for row in plan.rows)
    return Plan(tuple(rows), plan.bench)


def _score(directory: Path, label: str, rate: float, seeds: tuple[int, ...]) -> float | None:
    scores = []
    for seed in seeds:
        path = _directory(directory, label, rate, seed)
        points = trajectory(read_lines(path / "history.jsonl"))
        score = mean(point.accuracy for point in points if point.rounds > 0)
        if score is None or not (path / "summary.json").exists():
            return None
        scores.append(score)
    return mean(scores)


def _directory(directory: Path, label: str, rate: float, seed: int) -> Path:
    return directory / "tuning" / label / f"learning-rate-{rate:g}" / f"seed-{seed}"
