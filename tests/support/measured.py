"""Measures of a few examples of each task."""

from typing import Any

import torch

from spatl.tasks.metrics import METRICS
from spatl.tasks.targets import TaskName
from spatl.tasks.task import Measure, make_task
from spatl.wire.measures import Judging

TARGETS = {
    "classification": torch.tensor([0, 1, 2, 1]),
    "multi-label": torch.tensor([[0.0, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 0]]),
    "regression": torch.tensor([[0.0, 1, 2], [3, 1, 0], [1, 1, 1], [0, 2, 2]]),
    "next-token": torch.tensor([[0, 1], [2, 2], [1, -100], [0, 0]]),
}
OUTPUTS = {
    task: torch.linspace(-1, 2, 12).reshape(4, 3).sin() for task in ("classification", "multi-label", "regression")
}
OUTPUTS["next-token"] = torch.linspace(-2, 2, 24).reshape(4, 2, 3).sin()


def judging_of(task: TaskName, *metrics: str, **scale: Any) -> Judging:
    return Judging(
        make_task(task, metrics=metrics or tuple(METRICS[task]), **scale), 3, 2 if task == "next-token" else 1
    )


def told(judging: Judging) -> tuple[Measure, ...]:
    return judging.task.measures([(OUTPUTS[judging.task.name], TARGETS[judging.task.name])])
