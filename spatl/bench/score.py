"""Score of a benchmark's runs: the metric that they are judged by, its direction, and how it is written.

Costs are of a target, and a target is in the unit of the task's first metric: an accuracy that runs rise to, or an
error that they fall to. Records of a classification by accuracy have the keys that they always had; those of other
tasks have `score` in their place, and `metric` says of what.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from spatl.config.experiment import ExperimentConfig
from spatl.runs.scores import written

NOTHING: Final = "–"
_ROUNDING: Final = 1e-9  # far below one example of any test split, far above what means are off by
_KEYS: Final = {
    "final": ("final_accuracy", "final_score"),
    "worst": ("accuracy_min", "score_worst"),
    "spread": ("accuracy_spread", "score_spread"),
    "best": ("best_accuracy", "best_score"),
    "global": ("global_accuracy", "global_score"),
}


@dataclass(frozen=True)
class Score:
    """Metric that runs are judged by.

    Attributes:
        metric: Its name.
        higher_is_better: Its direction.
        is_share: Whether it lies in [0, 1], so that it is written as a percentage.
    """

    metric: str = "accuracy"
    higher_is_better: bool = True
    is_share: bool = True

    @property
    def is_accuracy(self) -> bool:
        """Return whether it is the accuracy of a classification, as of runs that name no task."""
        return self.metric == "accuracy"

    def reaches(self, value: float, target: float) -> bool:
        """Return whether a mean reaches a target: a mean of values that are exactly 0.8 may be a bit less."""
        slack = _ROUNDING if self.is_share else _ROUNDING * max(1.0, abs(target))
        return value >= target - slack if self.higher_is_better else value <= target + slack

    def best(self, values: Iterable[float]) -> float | None:
        """Return the best of some values; None of none."""
        return max(values, default=None) if self.higher_is_better else min(values, default=None)

    def worst(self, values: Iterable[float]) -> float | None:
        """Return the worst of some values; None of none."""
        return min(values, default=None) if self.higher_is_better else max(values, default=None)

    def text(self, value: float | None) -> str:
        """Write a value: a share as a percentage, any other number as it is."""
        return NOTHING if value is None else written(value, is_share=self.is_share)

    def change(self, value: float) -> str:
        """Write a difference of two values, in points of shares, with its sign."""
        return f"{100 * value:+.1f}" if self.is_share else f"{value:+.3g}"

    def named(self, **values: float | None) -> dict[str, Any]:
        """Return what a record tells of a run, by its keys: `final`, `worst`, `spread`, `best` and `global` of them."""
        if self.is_accuracy:
            return {_KEYS[what][0]: value for what, value in values.items()}
        facts = {"metric": self.metric, "higher_is_better": self.higher_is_better, "is_share": self.is_share}
        return facts | {_KEYS[what][1]: value for what, value in values.items()}


ACCURACY: Final = Score()


def score_of(config: ExperimentConfig) -> Score:
    """Return what the runs of a config are judged by.

    Raises:
        ConfigError: A metric of the user's is not there, or none.
    """
    metric = config.task.task().score
    return Score(metric.name, metric.higher_is_better, metric.is_share)


def score_of_record(record: Mapping[str, Any]) -> Score:
    """Return what a record is judged by."""
    if "metric" not in record:
        return ACCURACY
    return Score(record["metric"], record["higher_is_better"], record["is_share"])


def told(record: Mapping[str, Any], what: str) -> float | None:
    """Return what a record tells of a run: its `final`, `worst`, `spread`, `best` or `global` score."""
    accuracy, score = _KEYS[what]
    value: float | None = record.get(accuracy if "metric" not in record else score)
    return value
