"""Metrics of several clients: the mean of their values, and the value of all their examples pooled."""

import math
from collections.abc import Iterable, Sequence

import torch

from spatl.tasks.metrics import Metric
from spatl.tasks.task import Measure, Task


def together(task: Task, clients: Iterable[Sequence[Measure]]) -> dict[str, float | None]:
    """Return what clients tell of a task's metrics, put together; the same whatever their order.

    Args:
        task: The task.
        clients: Of each client with examples, the measure of each metric.

    Returns:
        By `NAME_mean` the mean over the clients for which the metric is defined, each alike; by `NAME_pooled` that of
        all their examples, where sums tell it; by `NAME_pooled_error` how much that may be off, where it may. None for
        what is not defined.
    """
    told = list(clients)
    found: dict[str, float | None] = {}
    for place, metric in enumerate(task.metrics):
        found |= _of_metric(metric, [each[place] for each in told], task)
    return found


def _of_metric(metric: Metric, told: Sequence[Measure], task: Task) -> dict[str, float | None]:
    key, values = metric.name.replace("-", "_"), [each.value for each in told if not math.isnan(each.value)]
    found: dict[str, float | None] = {f"{key}_mean": math.fsum(values) / len(values) if values else None}
    if metric.sums is None:
        return found
    parts = [each.sums for each in told]
    sums = torch.tensor([math.fsum(each) for each in zip(*parts, strict=True)], dtype=torch.float64)
    found[f"{key}_pooled"] = _defined(metric.of_sums(sums, task.deviations)) if parts else None
    if metric.error is not None:
        found[f"{key}_pooled_error"] = _defined(metric.error(sums)) if parts else None
    return found


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
