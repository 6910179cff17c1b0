"""Tasks by name: facts, no code, and no PyTorch; `spatl.tasks.targets` has what targets must be, as a table.

The table is the only place that knows tasks by their names, beside those of targets, losses and metrics.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from torch import Tensor

TaskName = Literal["classification", "multi-label", "regression", "next-token"]
"""The tasks, as `task.name` names them."""
IGNORED: Final = -100
"""Target of a place in a sequence that counts in no loss and in no metric, as of padding (PyTorch's)."""


@dataclass(frozen=True)
class TaskRow:
    """Row of `TASKS`.

    Attributes:
        noun: What there are K of, one and many.
        outputs: What a network returns, in words.
        frequencies: Whether targets have frequencies that a calibrated predictor adds (`spatl.training.calibration`).
        is_scaled: Whether targets are brought to mean 0 and variance 1 on the clients' training examples.
        by_place: Whether there is a target for each place of a sequence.
        labels: Whether a label is what clients can differ in (`partition.name`: dirichlet and its like).
    """

    noun: tuple[str, str]
    outputs: str
    frequencies: bool = False
    is_scaled: bool = False
    by_place: bool = False
    labels: bool = False

    def output_shape(self, targets: "Tensor", num_outputs: int) -> tuple[int, ...]:
        """Return the shape of what a network must return for a batch with such targets."""
        return (*targets.shape[: 2 if self.by_place else 1], num_outputs)


TASKS: Final[Mapping[TaskName, TaskRow]] = {
    "classification": TaskRow(("class", "classes"), "logits", frequencies=True, labels=True),
    "multi-label": TaskRow(("label", "labels"), "logits", frequencies=True),
    "regression": TaskRow(("target", "targets"), "values", is_scaled=True),
    "next-token": TaskRow(("token", "tokens"), "logits", by_place=True),
}
