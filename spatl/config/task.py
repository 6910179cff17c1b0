"""Section on the task: what the targets are for, the loss, and the metrics."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final, Self

from pydantic import field_validator, model_validator

from spatl.config.sections import Section
from spatl.errors import did_you_mean
from spatl.extensions.references import Door, is_reference
from spatl.tasks.loss_table import LOSS_DOOR, LOSSES
from spatl.tasks.metrics import METRIC_DOOR, METRICS
from spatl.tasks.rows import TaskName

if TYPE_CHECKING:
    from spatl.tasks.task import Task

_MOST_METRICS: Final = 16


class TaskConfig(Section):
    """Task of the model: what targets are for, how training weighs mistakes, and by what a model is judged."""

    name: TaskName = "classification"
    """`classification` into one of K classes; `multi-label`, K labels that are each 0 or 1; `regression` of K numbers;
    or `next-token`, the token after each place of a sequence (docs/tasks.md)."""
    loss: str | None = None
    """What is trained: `cross-entropy`, `binary-cross-entropy` of several labels, `mse`, `mae` or `huber` of a
    regression, or `package.module:loss`; null for the first of the task."""
    metrics: tuple[str, ...] = ()
    """What a model is judged by, the first of which is its score: rows of `spatl show metrics`, or
    `package.module:metric`. Without any, `accuracy`; `macro-f1` and `label-accuracy`; `mae`, `rmse` and `r2`; or
    `token-accuracy` and `perplexity`."""

    @field_validator("metrics", mode="before")
    @classmethod
    def _one_is_a_list(cls, metrics: object) -> object:
        return (metrics,) if isinstance(metrics, str) else metrics

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.loss is not None:
            _check("loss", self.loss, self.name, LOSSES, LOSS_DOOR)
        for metric in self.metrics:
            _check("metric", metric, self.name, METRICS, METRIC_DOOR)
        if len(set(self.metrics)) < len(self.metrics) or len(self.metrics) > _MOST_METRICS:
            raise ValueError(f"metrics must be at most {_MOST_METRICS}, none of them twice, got {list(self.metrics)}")
        return self

    def task(self, *, means: Collection[float] = (), deviations: Collection[float] = ()) -> "Task":
        """Return the task, with the scale of a regression's targets if it is known.

        Raises:
            ConfigError: A loss or a metric of the user's is not there, or none.
        """
        from spatl.tasks.task import make_task  # with which PyTorch comes, that a config is read without

        return make_task(
            self.name, loss=self.loss, metrics=self.metrics, means=tuple(means), deviations=tuple(deviations)
        )


def _check(noun: str, name: str, task: TaskName, tables: Mapping[TaskName, Mapping[str, Any]], door: Door) -> None:
    """Raise a `ValueError` unless a task has a loss or a metric of that name, or it is one of the user's."""
    if name in tables[task] or is_reference(name):
        return
    known = f'{", ".join(tables[task])}, or "{door.form}" for your own'
    if others := [other for other, table in tables.items() if name in table]:
        raise ValueError(f"the {noun} {name!r} is for {' and '.join(others)}, not for {task}; known: {known}")
    raise ValueError(f"unknown {noun} {name!r}{did_you_mean(name, tables[task])}; known for {task}: {known}")
