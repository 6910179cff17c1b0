"""Scores of a run as its files have them: the accuracy of a classification, or what another task is judged by."""

from collections.abc import Mapping
from typing import Any, Final

from spatl.tasks.metrics import METRICS


def metric_of(row: Mapping[str, Any]) -> str:
    """Return the name of the metric that is the score of a run, by a row of its history or its summary."""
    return str(row.get("metric") or "accuracy")


def score_in(row: Mapping[str, Any], prefix: str = "") -> float | None:
    """Return the score of a row or a summary: its accuracy, or that of another task.

    Args:
        row: Of `history.jsonl` or `clients.jsonl`, or the object of `summary.json`.
        prefix: Of the key: none, `final_`, `global_` or `final_global_`.
    """
    accuracy: float | None = row.get(f"{prefix}accuracy")
    score: float | None = row.get(f"{prefix}score")
    return score if accuracy is None else accuracy


def worst_in(row: Mapping[str, Any], prefix: str = "") -> float | None:
    """Return the score of the worst client of a row of the history, or of a summary; the arguments are `score_in`'s."""
    lowest: float | None = row.get(f"{prefix}accuracy_min")
    worst: float | None = row.get(f"{prefix}score_worst")
    return worst if lowest is None else lowest


_ALL: Final = [metric for table in METRICS.values() for metric in table.values()]
SHARES: Final = frozenset(metric.name for metric in _ALL if metric.is_share)
"""Metrics that are shares of 1, which people read in per cent."""
LOWER_IS_BETTER: Final = frozenset(metric.name for metric in _ALL if not metric.higher_is_better)
"""Metrics of which less is better."""


def human_score(value: float | None, metric: str) -> str:
    """Write a score: a share in per cent, another one in four digits, or a dash for one that is not known."""
    return "-" if value is None else written(value, is_share=metric in SHARES)


def written(value: float, *, is_share: bool) -> str:
    """Write a value of a metric that is a share of 1, or none."""
    return f"{100 * value:.1f} %" if is_share else f"{value:.4g}"


def named_score(metric: str) -> str:
    """Return what an axis of a metric is called."""
    if metric == "accuracy":
        return "accuracy (fraction correct)"
    return f"{metric} (lower is better)" if metric in LOWER_IS_BETTER else metric


def pooled_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the metrics of a summary, in words: of each the mean over clients and the pooled value.

    None of a classification that is judged by accuracy alone.
    """
    rows: list[tuple[str, str]] = []
    for key, value in (summary.get("metrics") or {}).items():
        name, _, kind = key.removesuffix("_error").rpartition("_")
        metric, shown = name.replace("_", "-"), "mean over clients" if kind == "mean" else "all their examples pooled"
        if key.endswith("_error"):
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} +- {human_score(value, metric)}")
        elif (metric, kind) != (metric_of(summary), "mean"):
            rows.append((f"{metric}, {shown}", human_score(value, metric)))
    return rows
