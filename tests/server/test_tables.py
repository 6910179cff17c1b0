"""Tables on their way through a run: a column of any width, and owners of whom one lacks a class."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatl.errors import DivergedError
from spatl.report.result import RunResult
from spatl.runner import run
from spatl.runs.records import read_lines
from tests.support.federations import tiny_config

NAMES = ("benign", "malignant", "unclear")


def write_table(path: Path, *, width: float = 1.0, lacking: str | None = None, owners: int = 4) -> None:
    """Rows of three columns whose sum and order say the class; owner 0 has none of a class that is lacking."""
    draw = np.random.default_rng(1)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["first", "second", "wide", "class", "owner"])
        for row in range(240):
            name, owner = NAMES[row % 3], row // 3 % owners
            values = draw.normal(size=3) + np.eye(3)[row % 3] * 3
            if owner or name != lacking:
                writer.writerow([values[0], values[1], width * values[2], name, f"hospital {owner}"])


def run_table(directory: Path, **sections: Any) -> RunResult:
    values = {
        "method": "fedavg", "rounds": 3, "model": {"name": "mlp", "options": {"hidden": [8]}},
        "partition": {"name": "natural", "num_clients": 4}, "training": {"local_steps": 10},
    }  # fmt: skip
    data = {"name": "table", "options": {"path": "table.csv", "target": "class", "owner": "owner"}}
    return run(tiny_config(**{**values, **sections, "data": data | sections.pop("data", {})}), directory,
               pictures=False, progress=False)  # fmt: skip


@pytest.mark.slow
def test_one_wide_column_changes_an_mlps_accuracy_by_less_than_one_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column is as wide as the others, then a million times as wide, which ends a run without a scale at once."""
    monkeypatch.chdir(tmp_path)
    accuracies = []
    for name, width in (("even", 1.0), ("wide", 1e6)):
        write_table(Path("table.csv"), width=width)
        accuracies.append(run_table(tmp_path / name).summary["accuracy"])
    even, wide = accuracies
    assert even > 0.85
    assert abs(even - wide) < 0.01
    with pytest.raises(DivergedError):
        run_table(tmp_path / "bare", data={"normalisation": "none"})


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spatl", "fedavg", "fedrep"])
def test_a_table_whose_labels_lack_a_class_on_one_device_runs(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(Path("table.csv"), lacking="unclear")
    result = run_table(tmp_path / "run", method=method)
    assert (result.summary["rejected"], result.summary["missing"], result.summary["num_clients"]) == (0, 0, 4)
    assert result.summary["accuracy"] > 0.6  # chance is a third
    rows = {row["owner"]: row["num_examples"] for row in read_lines(tmp_path / "run" / "clients.jsonl")}
    assert rows["hospital 0"] < rows["hospital 1"]
