"""Table of losses, by the task and the name in a config; what they are is imported when one is computed."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from spatl.errors import ConfigError
from spatl.extensions.late import LateModule
from spatl.extensions.references import Door
from spatl.tasks.rows import TaskName

if TYPE_CHECKING:
    from torch import Tensor

    from spatl.tasks import loss_functions
else:
    loss_functions = LateModule("spatl.tasks.loss_functions")

LossFunction = Callable[["Tensor", "Tensor", str], "Tensor"]
"""`function(outputs, targets, reduction)` as PyTorch's: the reduction is `mean`, `sum`, or `none` over all terms."""
LOSS_DOOR: Final = Door(
    "loss", "task.loss", "package.module:loss", error=ConfigError,
    expected="a function of outputs and targets that returns their mean loss, or a class of such",
)  # fmt: skip
LOSSES: Final[Mapping[TaskName, Mapping[str, LossFunction]]] = {
    "classification": {"cross-entropy": loss_functions.cross_entropy},
    "multi-label": {"binary-cross-entropy": loss_functions.binary_cross_entropy},
    "regression": {"mse": loss_functions.squared, "mae": loss_functions.absolute, "huber": loss_functions.huber},
    "next-token": {"cross-entropy": loss_functions.token_cross_entropy},
}
"""The losses of each task, of which the first is taken where a config names none."""
