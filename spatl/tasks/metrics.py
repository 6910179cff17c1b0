"""Metrics by name, a table for each task, or the user's own; each with its direction and what clients tell of it.

A client tells of a metric the sums that it follows from (`spatl.tasks.sums`), which add up over clients, so that the
server has both the mean of the clients' values and the value of their pooled examples. Curves are told by histograms of
scores: the pooled value has an error then, and its bound is told as well; the client's own value travels beside it.
"""

from __future__ import annotations  # of tensors, which are not imported for names

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from spatl.errors import ConfigError, ModelError, SpatlError, told
from spatl.extensions.late import LateModule
from spatl.extensions.references import Door, is_reference, resolve, row_of
from spatl.tasks.rows import TaskName

if TYPE_CHECKING:
    from torch import Tensor

    from spatl.tasks import sums
else:
    sums = LateModule("spatl.tasks.sums")

METRIC_DOOR: Final = Door(
    "metric", "task.metrics", "package.module:metric", error=ConfigError,
    expected="a spatl.tasks.metrics.Metric, or a function of outputs and targets that returns a number",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Metric:
    """Metric of a task.

    Attributes:
        name: As the config names it.
        higher_is_better: Its direction.
        lowest: The lowest value that it can have.
        highest: The highest.
        sums: `sums(outputs, targets)`, float64 `[S]` of some examples, which add up; None where nothing does.
        value: `value(sums)`, the metric, NaN where it is not defined; of a metric in the target's units one for each
            output, float64 `[K]`.
        size: `size(K)`, S.
        counts: Whether all sums are whole numbers.
        fault: `fault(sums)` returns what cannot be, or None.
        examples: `examples(sums, terms)`, of how many examples these are at least, if each has that many terms: places
            of a sequence, or else outputs.
        exact: `exact(outputs, targets)`, where sums tell the metric only nearly, or not at all.
        error: `error(sums)`, by how much the value of the sums may differ from it.
        ranked: `ranked(outputs, targets)`, of a curve the scores `[n, K]` and what is true `[n, K]` whose counts by bin
            are the sums; `value(sums, num_bins)` takes any number of bins then.
        in_units: Whether it is in the target's units, and so scaled with them; the mean over the outputs counts.
    """

    name: str
    higher_is_better: bool = True
    lowest: float = 0.0
    highest: float = 1.0
    sums: Callable[[Tensor, Tensor], Tensor] | None = None
    value: Callable[..., Any] | None = None
    size: Callable[[int], int] = lambda num_outputs: 0
    counts: bool = False
    fault: Callable[[Tensor], str | None] = lambda sums: None
    examples: Callable[[Tensor, int], float] = lambda sums, num_terms: 0.0
    exact: Callable[[Tensor, Tensor], float] | None = None
    error: Callable[[Tensor], float] | None = None
    ranked: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    in_units: bool = False

    @property
    def is_share(self) -> bool:
        """Return whether it is a share of 1 of which more is better, which people read in per cent."""
        return self.higher_is_better and (self.lowest, self.highest) == (0.0, 1.0)

    @property
    def sign(self) -> int:
        """1 where more is better, and -1 where less is."""
        return 1 if self.higher_is_better else -1

    def of_sums(self, found: Tensor, deviations: Tensor | None) -> float:
        """Return the metric that sums `[S]` make, in the target's units.

        Args:
            found: The sums.
            deviations: float64 [K], one unit of each output; None for 1.
        """
        assert self.value is not None
        value = self.value(found)
        if not self.in_units:
            return float(value)
        return float((value if deviations is None else value * deviations).mean())


def _of_hits(name: str, function: Callable[[Tensor, Tensor], Tensor], *, each: bool = True) -> Metric:
    """Return a share of hits: of `each` example, or of all its terms."""
    return Metric(
        name=name, sums=function, value=sums.value_of_hits, size=lambda k: 2, counts=True, fault=sums.fault_of_hits,
        examples=lambda found, num_terms: float(found[1]) / (1 if each else num_terms),
    )  # fmt: skip


def _of_confusion(
    name: str, function: Callable[[Tensor, Tensor], Tensor], value: Callable[[Tensor], float], *, one_each: bool
) -> Metric:
    """Return a metric of a confusion; whether each example has `one_each`, a class, or any number of labels."""

    def examples(found: Tensor, num_terms: int) -> float:
        counted = found[num_terms:].reshape(2, -1)
        return float((counted.sum(1) if one_each else counted).max())

    return Metric(
        name=name, sums=function, value=value, size=lambda k: 3 * k, counts=True, examples=examples,
        fault=sums.fault_of_class_confusion if one_each else sums.fault_of_confusion,
    )  # fmt: skip


def _curves(
    function: Callable[[Tensor, Tensor], Tensor], ranked: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    fault: Callable[[Tensor], str | None] = lambda found: None,
) -> list[Metric]:  # fmt: skip
    """Return the metrics of the curves of scores."""
    common: dict[str, Any] = {
        "sums": function, "size": sums.num_bins, "counts": True, "fault": fault, "ranked": ranked,
        "examples": lambda found, num_terms: float(found.reshape(2, num_terms, -1).sum((0, 2)).max()),
    }  # fmt: skip
    return [
        Metric(
            name="auroc", value=sums.value_of_auroc, error=sums.error_of_auroc,
            exact=lambda outputs, targets: sums.exact_auroc(*ranked(outputs, targets)), **common,
        ),
        Metric(
            name="average-precision", value=sums.value_of_average_precision, error=sums.error_of_average_precision,
            exact=lambda outputs, targets: sums.exact_average_precision(*ranked(outputs, targets)), **common,
        ),
    ]  # fmt: skip


def _last(found: Tensor, num_terms: int) -> float:
    return float(found[-1])


def _root(found: Tensor) -> Tensor:
    return sums.value_of_errors(found).sqrt()


def _by_name(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


METRICS: Final[Mapping[TaskName, Mapping[str, Metric]]] = {
    "classification": _by_name(
        _of_hits("accuracy", sums.hits),
        _of_confusion("balanced-accuracy", sums.confusion, sums.value_of_recall, one_each=True),
        _of_confusion("macro-f1", sums.confusion, sums.value_of_f1, one_each=True),
        *_curves(sums.bins_of_classes, sums.classes_seen, sums.fault_of_class_bins),
    ),
    "multi-label": _by_name(
        _of_confusion("macro-f1", sums.confusion_of_labels, sums.value_of_f1, one_each=False),
        _of_hits("label-accuracy", sums.hits_of_labels, each=False),
        *_curves(sums.bins_of_labels, lambda outputs, targets: (outputs, targets)),
    ),
    "regression": _by_name(
        Metric(
            name="mae", higher_is_better=False, highest=math.inf, sums=sums.absolute_errors, value=sums.value_of_errors,
            size=lambda k: k + 1, fault=sums.fault_of_errors, in_units=True,
            examples=_last,
        ),
        Metric(
            name="rmse", higher_is_better=False, highest=math.inf, sums=sums.squared_errors, value=_root,
            size=lambda k: k + 1, fault=sums.fault_of_errors, in_units=True,
            examples=_last,
        ),
        Metric(
            name="r2", lowest=-math.inf, sums=sums.squares, value=sums.value_of_r2, size=lambda k: 3 * k + 1,
            fault=sums.fault_of_squares, examples=_last,
        ),
    ),
    "next-token": _by_name(
        _of_hits("token-accuracy", sums.hits_of_tokens, each=False),
        Metric(
            name="perplexity", higher_is_better=False, highest=math.inf, sums=sums.surprise,
            value=sums.value_of_perplexity, size=lambda k: 2, fault=sums.fault_of_errors,
            examples=lambda found, num_terms: float(found[1]) / num_terms,
        ),
    ),
}  # fmt: skip
"""The metrics of each task."""
DEFAULT_METRICS: Final[Mapping[TaskName, tuple[str, ...]]] = {
    "classification": ("accuracy",),
    "multi-label": ("macro-f1", "label-accuracy"),
    "regression": ("mae", "rmse", "r2"),
    "next-token": ("token-accuracy", "perplexity"),
}
"""Those of a config that names none; the first is the score."""


def make_metrics(names: Sequence[str], task: TaskName) -> tuple[Metric, ...]:
    """Return metrics of a task.

    Args:
        names: Keys of the task's table in `METRICS`, or `"package.module:metric"`; none for the task's own.
        task: The task.

    Raises:
        ConfigError: There is none of a name.
    """
    found = tuple(_metric(name, task) for name in names or DEFAULT_METRICS[task])
    built_in = {name for table in METRICS.values() for name in table}
    for place, (name, metric) in enumerate(zip(names, found, strict=bool(names))):
        if is_reference(name) and metric.name in built_in:
            raise ConfigError(f"metric {name!r} is called {metric.name!r}, as one that is built in; rename it")
        if metric.name in {each.name for each in found[:place]}:
            raise ConfigError(f"task.metrics: two metrics are called {metric.name!r}; rename one")
    return found


def _metric(name: str, task: TaskName) -> Metric:
    if not is_reference(name):
        return row_of(name, METRICS[task], METRIC_DOOR)
    found = resolve(name, METRIC_DOOR, accepts=lambda each: isinstance(each, Metric) or callable(each))
    if isinstance(found, Metric):
        return found
    better = getattr(found, "higher_is_better", True)

    def exact(outputs: Tensor, targets: Tensor) -> float:
        try:
            return float(found(outputs, targets))
        except SpatlError:
            raise
        except Exception as error:
            raise ModelError(f"metric {name!r} failed on outputs {list(outputs.shape)}: {told(error)}") from error

    return Metric(
        name=name.partition(":")[2], higher_is_better=bool(better), lowest=-math.inf, highest=math.inf, exact=exact
    )
