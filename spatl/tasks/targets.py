"""Targets of each task: what they must be, and what a network must return for them.

| task | targets | outputs of a network |
|---|---|---|
| classification | int64 `[N]`, in [0, K) | logits `[N, K]` |
| multi-label | float32 `[N, K]`, 0 or 1 | logits `[N, K]` |
| regression | float32 `[N, K]`, finite | values `[N, K]` |
| next-token | int64 `[N, T]`, in [0, K), or `IGNORED` | logits `[N, T, K]` |

The table is the only place that knows tasks by their names, beside those of losses and metrics.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

TaskName = Literal["classification", "multi-label", "regression", "next-token"]
"""The tasks, as `task.name` names them."""
IGNORED: Final = -100
"""Target of a place in a sequence that counts in no loss and in no metric, as of padding (PyTorch's)."""
LARGEST_TARGET: Final = 1e30
"""The largest size of a target of a regression, as of values that a model sees."""


@dataclass(frozen=True)
class TaskRow:
    """Row of `TASKS`.

    Attributes:
        noun: What there are K of, one and many.
        outputs: What a network returns, in words.
        fault: `fault(targets, num_examples, num_outputs)` returns what is wrong with targets, or None.
        frequencies: Whether targets have frequencies that a calibrated predictor adds (`spatl.training.calibration`).
        is_scaled: Whether targets are brought to mean 0 and variance 1 on the clients' training examples.
        by_place: Whether there is a target for each place of a sequence.
        labels: Whether a label is what clients can differ in (`partition.name`: dirichlet and its like).
    """

    noun: tuple[str, str]
    outputs: str
    fault: Callable[[Tensor, int, int], "Fault | None"]
    frequencies: bool = False
    is_scaled: bool = False
    by_place: bool = False
    labels: bool = False

    def output_shape(self, targets: Tensor, num_outputs: int) -> tuple[int, ...]:
        """Return the shape of what a network must return for a batch with such targets."""
        return (*targets.shape[: 2 if self.by_place else 1], num_outputs)


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


TASKS: Final[Mapping[TaskName, TaskRow]] = {
    "classification": TaskRow(("class", "classes"), "logits", _of_classes, frequencies=True, labels=True),
    "multi-label": TaskRow(("label", "labels"), "logits", _of_labels, frequencies=True),
    "regression": TaskRow(("target", "targets"), "values", _of_values, is_scaled=True),
    "next-token": TaskRow(("token", "tokens"), "logits", _of_tokens, by_place=True),
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
    return TASKS[task].fault(targets, num_examples, num_outputs)
