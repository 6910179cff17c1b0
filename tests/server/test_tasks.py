"""Whole runs of tasks other than classification: above a trivial baseline, and with what their files say of them."""

from pathlib import Path

import pytest

from spatl.artifacts.description import read_description
from spatl.config.loading import parse_config
from spatl.json_files import read_json
from spatl.runner import run
from spatl.runs.records import read_lines
from tests.support.tasks import task_config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "metric", "pooled"),
    [
        ("regression", "mae", "r2"),
        ("multi-label", "macro-f1", "macro_f1"),
        ("next-token", "token-accuracy", "perplexity"),
    ],
)
def test_a_task_is_learnt(task: str, metric: str, pooled: str, tmp_path: Path) -> None:
    """On test splits: R2 is 0 of the mean; macro F1 at most 2/3 of saying yes to all; 8 tokens have a perplexity of 8.

    Nine tenths of all steps are the same, so that no model is right more often, but for chance, and none has a
    perplexity below exp(-0.9 log 0.9 - 0.1 log 0.1) = 1.38.
    """
    summary = run(task_config(task), tmp_path / "run", pictures=False).summary
    rows = read_lines(tmp_path / "run" / "history.jsonl")
    assert summary["accuracy"] is None
    assert summary["metric"] == metric
    assert summary["score"] == rows[-1]["final_score"] == pytest.approx(sum(summary["clients"].values()) / 4)
    described = read_json(tmp_path / "run" / "model" / "model.json")
    assert (described["accuracy"], described["score"]) == (None, summary["score"])
    assert read_description(tmp_path / "run" / "model").accuracy == summary["score"]
    if task == "multi-label":
        expected = "strength * log((n_c + smoothing) / (n - n_c + smoothing))"
        assert described["offset"]["added to the logit of label c"] == expected
    found = summary["metrics"][f"{pooled}_pooled"]
    assert {"r2": found > 0.9, "macro_f1": found > 0.8, "perplexity": 1.3 < found < 1.8}[pooled]
    assert summary["metrics"] == rows[-1]["final_metrics"]
    clients = [row for row in read_lines(tmp_path / "run" / "clients.jsonl") if row["round"] == 8]
    assert [row["final_score"] for row in clients] == [row["final_metrics"][metric] for row in clients]
    better = rows[-1]["score"] < rows[0]["score"] if metric == "mae" else rows[-1]["score"] > rows[0]["score"]
    assert better
    assert rows[0]["score_worst"] == {"mae": max, "macro-f1": min, "token-accuracy": min}[metric](
        row["score"] for row in read_lines(tmp_path / "run" / "clients.jsonl") if row["round"] == 1
    )


@pytest.mark.slow
def test_a_classification_by_accuracy_says_and_sends_what_it_always_did(tmp_path: Path) -> None:
    config = parse_config(
        {"rounds": 1, "partition": {"name": "iid", "num_clients": 2}, "training": {"local_steps": 1, "device": "cpu"}}
    )
    run(config, tmp_path / "run", pictures=False)
    for name in ("history.jsonl", "clients.jsonl"):
        keys = {key for row in read_lines(tmp_path / "run" / name) for key in row}
        assert not {key for key in keys if "metric" in key or "score" in key}
