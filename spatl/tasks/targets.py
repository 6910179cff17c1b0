"""Targets of each task: what they must be, and what a network must return for them.

| task | targets | outputs of a network |
|---|---|---|
| classification | int64 `[N]`, in [0, K) | logits `[N, K]` |
| multi-label | float32 `[N, K]`, 0 or 1 | logits `[N, K]` |
| regression | float32 `[N, K]`, finite | values `[N, K]` |
| next-token | int64 `[N, T]`, in [0, K), or `IGNORED` | logits `[N, T, K]` |
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from spatl.tasks.rows import IGNORED, TASKS, TaskName, TaskRow

__all__ = ["IGNORED", "LARGEST_TARGET", "TASKS", "TaskName", "TaskRow", "as_task_has_them", "fault_of_targets"]

LARGEST_TARGET: Final = 1e30
"""The largest size of a target of a regression, as of values that a model sees."""
Fault = tuple[str, str]
"""What targets must be, and what came."""


def _shape(targets: Tensor) -> str:
    return f"{str(targets.dtype).removeprefix('torch.')} {list(targets.shape)}"


def _of_classes(targets: Tensor, num_examples: int, num_outputs: int) -> Fault | None:
    if targets.dtype != torch.int64 or targets.shape != (num_examples,):
        return f"labels must be int64 [{num_examples}], one per example", _shape(targets)
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= num_outputs:
        return f"labels must lie in [0, {num_outputs})", f"[{low}, {high}]"
    return None


def _of_labels(targets: Tensor, num_examples: int, num_outputs: int) -> Fault | None:
    if targets.dtype != torch.float32 or targets.shape != (num_examples, num_outputs):
        expected = f"the labels of several must be numbers [{num_examples}, {num_outputs}], a column for each label"
        return expected, _shape(targets)
    return _first(targets, (targets != 0) & (targets != 1), "labels must be 0 or 1")


def _of_values(targets: Tensor, num_examples: int, num_outputs: int) -> Fault | None:
    if targets.dtype != torch.float32 or targets.shape != (num_examples, num_outputs):
        expected = f"the targets of a regression must be floating point [{num_examples}, {num_outputs}]"
        return expected, _shape(targets)
    wrong = ~(targets.abs() <= LARGEST_TARGET)  # NaN is not, either
    return _first(targets, wrong, f"targets must be finite and at most {LARGEST_TARGET:g} in size")


def _of_tokens(targets: Tensor, num_examples: int, num_outputs: int) -> Fault | None:
    if targets.dtype != torch.int64 or targets.dim() != 2 or len(targets) != num_examples or not targets.numel():
        return f"the next tokens must be int64 [{num_examples}, T], one for each place of a sequence", _shape(targets)
    counts = targets != IGNORED
    if not bool(counts.any()):
        return "some next token must count", f"{IGNORED} at all places, which is ignored"
    expected = f"the next tokens must lie in [0, {num_outputs}), or be {IGNORED} where they do not count"
    return _first(targets, counts & ((targets < 0) | (targets >= num_outputs)), expected)


def _first(targets: Tensor, wrong: Tensor, expected: str) -> Fault | None:
    """Return the fault of the first target that is wrong, if one is."""
    places = wrong.nonzero()
    if not len(places):
        return None
    return expected, f"{targets[tuple(places[0])].item():g} for example {int(places[0, 0])}, one of {len(places)}"


_FAULTS: Final[Mapping[TaskName, Callable[[Tensor, int, int], Fault | None]]] = {
    "classification": _of_classes,
    "multi-label": _of_labels,
    "regression": _of_values,
    "next-token": _of_tokens,
}


def as_task_has_them(task: TaskName, targets: Tensor) -> Tensor:
    """Return targets in the form of their task where that changes none: `[N]` as `[N, 1]`, and numbers as float32."""
    row = TASKS[task]
    if row.by_place or task == "classification":
        return targets
    if row.is_scaled and targets.dim() == 1:
        targets = targets[:, None]
    fits = targets.is_floating_point() if row.is_scaled else not targets.is_complex()
    return targets.to(torch.float32) if fits else targets


def fault_of_targets(task: TaskName, targets: Tensor, *, num_examples: int, num_outputs: int) -> Fault | None:
    """Return what targets must be and what came, where they are otherwise; None where they are as they must be."""
    return _FAULTS[task](targets, num_examples, num_outputs)
