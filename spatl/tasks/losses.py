"""Losses by name, rows of a table or functions of the user's; each as a mean, a sum, and for each example."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spatl.errors import ConfigError, ModelError, SpatlError, told
from spatl.extensions.references import is_reference, resolve, row_of
from spatl.tasks.loss_table import LOSS_DOOR, LOSSES
from spatl.tasks.rows import IGNORED, TASKS, TaskName

__all__ = ["LOSSES", "LOSS_DOOR", "Loss", "make_loss"]


@dataclass(frozen=True, eq=False)
class Loss:
    """Loss of a task.

    Attributes:
        name: As the config names it.
        task: Of which it is one.
        function: What computes it.
        is_users: Whether it is the user's own, which returns a mean alone.
    """

    name: str
    task: TaskName
    function: Callable[..., Tensor]
    is_users: bool = False

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over a batch, a scalar: what training follows."""
        return self._users(outputs, targets) if self.is_users else self.function(outputs, targets, "mean")

    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over a batch, a scalar, of which there are `num_terms`."""
        if self.is_users:  # whose mean over nothing may be anything
            number = self.num_terms(targets)
            return self._users(outputs, targets) * number if number else outputs.new_zeros(())
        return self.function(outputs, targets, "sum")

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of each example, `[n]`."""
        if self.is_users:
            return torch.stack([self._users(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(targets))])
        terms = self.function(outputs, targets, "none")
        if terms.dim() == 1:
            return terms
        if TASKS[self.task].by_place:
            return terms.sum(1) / (targets != IGNORED).sum(1).clamp(min=1)
        return terms.mean(1)

    def num_terms(self, targets: Tensor) -> int:
        """Return over how many terms the mean of some examples goes: their values, or the tokens that count."""
        if TASKS[self.task].by_place:
            return int((targets != IGNORED).sum())
        return targets.numel()

    def _users(self, outputs: Tensor, targets: Tensor) -> Tensor:
        try:
            found: Any = self.function(outputs, targets)
        except SpatlError:
            raise
        except Exception as error:
            raise ModelError(f"loss {self.name!r} failed on outputs {list(outputs.shape)}: {told(error)}") from error
        if not isinstance(found, Tensor) or found.numel() != 1 or not found.is_floating_point():
            came = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ModelError(f"loss {self.name!r} must return the mean over a batch, a single number, got {came}")
        return found.reshape(())


def make_loss(name: str | None, task: TaskName) -> Loss:
    """Return a loss of a task.

    Args:
        name: A row of the task's table in `LOSSES`, or `"package.module:loss"`; None for the first row.
        task: The task.

    Raises:
        ConfigError: There is none of that name.
    """
    table = LOSSES[task]
    if name is None:
        name = next(iter(table))
    if not is_reference(name):
        return Loss(name, task, row_of(name, table, LOSS_DOOR))
    found = resolve(name, LOSS_DOOR, accepts=callable)
    try:
        function = found() if isinstance(found, type) else found
    except Exception as error:
        raise ConfigError(f"loss {name!r} cannot be made: {told(error)}") from error
    if not callable(function):
        raise ConfigError(f"loss {name!r}: an object of {type(function).__name__} cannot be called")
    return Loss(name, task, function, is_users=True)
