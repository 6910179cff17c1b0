"""Measures of an evaluation on the wire: what a client tells of a task's metrics beside its score and its loss.

Both sides know the task, so that nothing but numbers travels: for each metric, in the order of the config, its value
where it does not follow from sums, and the sums that add up over clients (`spatl.tasks.metrics`). What they say is
checked before any of it is used.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from spatl.errors import UpdateRejected
from spatl.tasks.metrics import Metric
from spatl.tasks.task import CLASSIFICATION, Measure, Task
from spatl.wire.blob import section_bytes_of

_VALUE, _SUM, _COUNT = np.dtype("<f8"), np.dtype("<f8"), np.dtype("<u4")
LARGEST_SCORE: Final = 1e30
"""The largest size of a score that is used: beyond it no training works, as of a loss."""
_LARGEST_SUM: Final = 1e75  # of squares of the largest targets, of any number of examples
_NEAR: Final = 1e-6  # by how much a score may differ from that of the sums, relative to its size: sums of floats do


@dataclass(frozen=True, eq=False)
class Judging:
    """Judging of a run: by what both sides know what a client tells of an evaluation.

    Attributes:
        task: The task.
        num_outputs: How many outputs a network has (K).
        length: Places of a sequence (T); 1 of other tasks.
    """

    task: Task = CLASSIFICATION
    num_outputs: int = 1
    length: int = 1

    @property
    def num_bytes(self) -> int:
        """Bytes of the measures; 0 where accuracy and loss say all."""
        return sum(self._bytes_of(metric) for metric in self.task.metrics) if self.task.tells_more else 0

    @property
    def section_bytes(self) -> int:
        """Return how long their section is in a blob, its line in the table included; 0 where there is none."""
        return section_bytes_of(self.num_bytes) if self.task.tells_more else 0

    def to_bytes(self, measures: Sequence[Measure]) -> bytes:
        """Return measures as they travel; none, of a client without test examples, as sums of 0 and values of NaN."""
        if not self.task.tells_more:
            return b""
        told = list(measures) or [self._of_nothing(metric) for metric in self.task.metrics]
        parts = []
        for metric, measure in zip(self.task.metrics, told, strict=True):
            if metric.exact is not None:
                parts.append(np.array([measure.value], dtype=_VALUE).tobytes())
            parts.append(np.array(measure.sums).astype(_COUNT if metric.counts else _SUM).tobytes())
        return b"".join(parts)

    def from_bytes(
        self, data: bytes | memoryview, *, score: float, most_examples: int | None = None
    ) -> tuple[Measure, ...]:
        """Check and read what `to_bytes` wrote.

        Args:
            data: The bytes.
            score: What the client says its score is.
            most_examples: As many examples as it may tell of; None where nobody knows.

        Raises:
            UpdateRejected: The length is wrong, or the numbers are none that examples have.
        """
        if len(data) != self.num_bytes:
            raise UpdateRejected(f"expected {self.num_bytes} bytes of measures, got {len(data)}")
        measures, start = [], 0
        for metric in self.task.metrics if self.task.tells_more else ():
            part = data[start : start + self._bytes_of(metric)]
            measures.append(self._read(metric, part, most_examples))
            start += len(part)
        if measures and not _is_near(score, measures[0].value):
            raise UpdateRejected(f"the score is {score:g}, that of what was measured {measures[0].value:g}")
        return tuple(measures)

    def check_score(self, score: float) -> None:
        """Raise unless a score lies where that of the task does; NaN for one that is not defined.

        Raises:
            UpdateRejected: It is out of its range.
        """
        _check_range("score", score, self.task.score)

    def _bytes_of(self, metric: Metric) -> int:
        own = 0 if metric.exact is None else _VALUE.itemsize
        return own + (_COUNT if metric.counts else _SUM).itemsize * self._size(metric)

    def _size(self, metric: Metric) -> int:
        return 0 if metric.sums is None else metric.size(self.num_outputs)

    def _of_nothing(self, metric: Metric) -> Measure:
        return Measure(math.nan, (0.0,) * self._size(metric))

    def _read(self, metric: Metric, data: bytes | memoryview, most_examples: int | None) -> Measure:
        told, own = math.nan, 0
        if metric.exact is not None:
            own = _VALUE.itemsize
            told = float(np.frombuffer(data[:own], dtype=_VALUE)[0])
        form = _COUNT if metric.counts else _SUM
        sums = torch.from_numpy(np.frombuffer(data[own:], dtype=form).astype(np.float64))
        if not bool((sums.abs() <= _LARGEST_SUM).all()):  # NaN is not, either
            raise UpdateRejected(f"the sums of {metric.name} must be finite and at most {_LARGEST_SUM:g} in size")
        if metric.sums is None:
            _check_range(metric.name, told, metric)
            return Measure(told)
        fault = metric.fault(sums)
        if fault is not None:
            raise UpdateRejected(f"the sums of {metric.name} say {fault}")
        number = metric.examples(sums, self.length if self.task.row.by_place else self.num_outputs)
        if most_examples is not None and number > most_examples:
            raise UpdateRejected(
                f"the sums of {metric.name} are of {number:g} examples, the client has {most_examples}"
            )
        value = metric.of_sums(sums, self.task.deviations)
        if metric.exact is None:
            told = value
        elif metric.error is not None and not _is_near(told, value, metric.error(sums)):
            raise UpdateRejected(f"{metric.name} is {told:g}, which no scores with those counts have ({value:g})")
        _check_range(metric.name, told, metric)
        return Measure(told, tuple(sums.tolist()))


def _is_near(one: float, other: float, by: float = 0.0) -> bool:
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return abs(one - other) <= by + _NEAR * max(1.0, abs(other))


def _check_range(what: str, value: float, metric: Metric) -> None:
    if math.isnan(value):
        return
    low, high = max(metric.lowest, -LARGEST_SCORE), min(metric.highest, LARGEST_SCORE)
    if not low - _NEAR <= value <= high + _NEAR:
        raise UpdateRejected(f"the {what} must lie in [{low:g}, {high:g}], got {value}")
