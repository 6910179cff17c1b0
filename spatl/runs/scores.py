"""Scores of a run as its files have them: the accuracy of a classification, or what another task is judged by."""

from collections.abc import Mapping
from typing import Any


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
