"""A task as a run has it: its loss, its metrics, and how outputs are judged by them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from spatl.tasks.losses import Loss, make_loss
from spatl.tasks.metrics import Metric, make_metrics
from spatl.tasks.sums import ranks
from spatl.tasks.targets import TASKS, TaskName, TaskRow

_PLACES_AT_ONCE: Final = 1 << 12  # of sequences, each of which has a logit for each token


@dataclass(frozen=True)
class Measure:
    """Measure of a metric on some examples.

    Attributes:
        value: Of the metric, in the target's units; NaN where it is not defined.
        sums: What it follows from and adds up; empty where nothing does.
    """

    value: float
    sums: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Task:
    """Task of a run.

    Attributes:
        name: Its name.
        loss: What is trained.
        metrics: What a model is judged by; the first is its score.
        means: Of a regression, what was taken from each output's targets, float64 [K]; None for nothing.
        deviations: What they were then divided by, likewise.
    """

    name: TaskName
    loss: Loss
    metrics: tuple[Metric, ...]
    means: Tensor | None = None
    deviations: Tensor | None = None

    @property
    def row(self) -> TaskRow:
        """The facts of the task."""
        return TASKS[self.name]

    @property
    def score(self) -> Metric:
        """The metric that decides: of the best round, of a choice, in the short lines of a run."""
        return self.metrics[0]

    @property
    def counts_hits(self) -> bool:
        """Return whether the score is the accuracy of a classification, as of runs that name no task."""
        return self.name == "classification" and self.score.name == "accuracy"

    @property
    def tells_more(self) -> bool:
        """Return whether clients tell more of an evaluation than accuracy and loss."""
        return not (self.counts_hits and len(self.metrics) == 1)

    def chunk(self, most: int, targets: Tensor) -> int:
        """Return how many examples are evaluated at once: `most`, or fewer of long sequences."""
        return max(1, min(most, _PLACES_AT_ONCE // targets.shape[1])) if self.row.by_place else most

    def measures(self, outputs: Iterable[tuple[Tensor, Tensor]]) -> tuple[Measure, ...]:
        """Return the measure of each metric on examples.

        Args:
            outputs: Batches of a network's outputs, float32, and the targets; at least one.
        """
        tally = Tally(self)
        for each, targets in outputs:
            tally.add(each, targets)
        return tally.measures()

    def merits(self, outputs: Tensor, targets: Tensor) -> tuple[float, Tensor]:
        """Return the score of some examples, more being better, and the part of each in it.

        Of a score that is a mean over examples a part is the example's own value; of others it is the jackknife's
        pseudo-value (Quenouille 1956; Tukey 1958), n times the score less n - 1 times that without the example, whose
        mean and standard error are those of the score. Values are in units of the targets' deviation. A score that the
        examples do not define is 0, with parts of 0.

        Args:
            outputs: Of the network, float32.
            targets: Likewise, of two examples or more.

        Returns:
            The score, and float64 [n].
        """
        if self.counts_hits:
            right = outputs.argmax(1) == targets
            return int(right.sum()) / len(targets), right.cpu().double()
        number, sign = len(targets), self.score.sign
        if self.score.ranked is not None:
            score, values = self._ranked(*_widened(self.score, outputs, targets))
        elif self.score.sums is None:
            values = [self._exact(outputs[kept], targets[kept]) for kept in _without_each(number)]
            score = self._exact(outputs, targets)
        else:
            rows = torch.stack([self._summed(outputs[i : i + 1], targets[i : i + 1]) for i in range(number)])
            total = rows.sum(0)
            values, score = [self.score.of_sums(total - own, None) for own in rows], self.score.of_sums(total, None)
        parts = sign * (number * score - (number - 1) * torch.tensor(values, dtype=torch.float64))
        if not bool(parts.isfinite().all()):
            return 0.0, torch.zeros(number, dtype=torch.float64)
        return sign * score, parts

    def _summed(self, outputs: Tensor, targets: Tensor) -> Tensor:
        assert self.score.sums is not None
        return self.score.sums(*_widened(self.score, outputs, targets))

    def _ranked(self, outputs: Tensor, targets: Tensor) -> tuple[float, list[float]]:
        """Return a score that goes by ranks, and what it is without each example."""
        assert self.score.ranked is not None
        assert self.score.value is not None
        scores, true = self.score.ranked(outputs, targets)
        (number, columns), places = scores.shape, ranks(scores)
        rows, outer = (true <= 0).long(), torch.arange(columns).expand_as(places)
        counts = torch.zeros(2, columns, number, dtype=torch.float64)
        counts.index_put_((rows, outer, places), torch.ones((), dtype=torch.float64), accumulate=True)
        values = []
        for row, place in zip(rows, places, strict=True):
            own = (row, outer[0], place)
            counts[own] -= 1
            values.append(float(self.score.value(counts.flatten(), number)))
            counts[own] += 1
        return float(self.score.value(counts.flatten(), number)), values

    def _exact(self, outputs: Tensor, targets: Tensor) -> float:
        assert self.score.exact is not None
        return self.score.exact(outputs, targets)

    def worst(self, scores: Sequence[float]) -> float | None:
        """Return the worst of some scores; None of none."""
        return min(scores, key=lambda score: self.score.sign * score, default=None)

    def is_better(self, score: float, other: float) -> bool:
        """Return whether a score is better than another one."""
        return self.score.sign * score > self.score.sign * other

    def in_units(self, values: Tensor) -> Tensor:
        """Return outputs or targets `[n, K]` in the target's own units, float64 on the CPU."""
        wide = values.detach().cpu().double()
        return wide if self.deviations is None or self.means is None else wide * self.deviations + self.means


class Tally:
    """Tally of a task's metrics over batches of outputs.

    Args:
        task: The task.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._sums: list[Tensor | None] = [None] * len(task.metrics)
        self._kept: list[tuple[Tensor, Tensor]] = []

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch of a network's outputs, float32, with its targets, on any device."""
        for place, metric in enumerate(self._task.metrics):
            if metric.sums is not None:
                found, before = metric.sums(*_widened(metric, outputs, targets)), self._sums[place]
                self._sums[place] = found if before is None else before + found
        if any(metric.exact is not None for metric in self._task.metrics):
            self._kept.append((outputs.detach().cpu(), targets.detach().cpu()))

    def measures(self) -> tuple[Measure, ...]:
        """Return the measure of each metric on all that was counted."""
        return tuple(map(self._measure, self._task.metrics, self._sums))

    def _measure(self, metric: Metric, sums: Tensor | None) -> Measure:
        told = () if sums is None else tuple(sums.tolist())
        if metric.exact is None:
            assert sums is not None
            return Measure(metric.of_sums(sums, self._task.deviations), told)
        outputs, targets = (torch.cat(each) for each in zip(*self._kept, strict=True))
        if self._task.row.is_scaled:
            return Measure(metric.exact(self._task.in_units(outputs), self._task.in_units(targets)), told)
        return Measure(metric.exact(outputs.double(), targets), told)


def make_task(
    name: TaskName, *, loss: str | None = None, metrics: Sequence[str] = (), means: Sequence[float] = (),
    deviations: Sequence[float] = (),
) -> Task:  # fmt: skip
    """Return a task.

    Args:
        name: Its name.
        loss: A row of its losses, or `"package.module:loss"`; None for its own.
        metrics: Rows of its metrics, or `"package.module:metric"`; none for its own.
        means: Of a regression, what was taken from the targets of each output.
        deviations: What they were then divided by.

    Raises:
        ConfigError: There is no such loss or metric.
    """
    scale = [torch.tensor(each, dtype=torch.float64) if len(each) else None for each in (means, deviations)]
    return Task(name, make_loss(loss, name), make_metrics(metrics, name), *scale)


def _widened(metric: Metric, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs and targets as a metric sums them: in float64 on the CPU, but for those that count signs alone."""
    if metric.counts and metric.exact is None:
        return outputs, targets
    return outputs.detach().cpu().double(), targets.detach().cpu()


def _without_each(number: int) -> Iterable[Tensor]:
    """Yield the places of all but one, for each one."""
    everything = torch.arange(number)
    return (everything[everything != left_out] for left_out in range(number))


def is_known(value: float) -> bool:
    """Return whether a metric is defined."""
    return not math.isnan(value)


CLASSIFICATION: Final = make_task("classification")
"""The task of a run that names none."""
