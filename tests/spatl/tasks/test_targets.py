"""What is no target of a task is one line, and so is a config that asks for what a task has not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from spatl.console.main import main
from spatl.data import Dataset
from spatl.data.brought import dataset_of
from spatl.data.partitioners import check_partition
from spatl.errors import DataError
from spatl.tasks.targets import IGNORED, TaskName

INPUTS = np.zeros((4, 3), dtype=np.float32)
TOKENS = np.array([[1, 2], [3, 0], [1, 1], [2, 2]])


@pytest.mark.parametrize(
    ("task", "inputs", "targets", "line"),
    [
        ("regression", INPUTS, np.array(["a", "b", "c", "d"]), "the targets of regression must be numbers, got <U1"),
        (
            "regression",
            INPUTS,
            np.array([1, 2, np.nan, 3]),
            "targets must be finite and at most 1e+30 in size, got nan",
        ),
        ("regression", INPUTS, np.zeros((4, 2, 2)), "must be numbers [N] or [N, K], got float64 [4, 2, 2]"),
        ("regression", INPUTS, np.zeros(3), "targets must be 4, one per example, got 3"),
        ("multi-label", INPUTS, np.array([[0, 1], [1, 2], [0, 0], [1, 1]]), "must be 0 or 1, got 2 for example 1"),
        ("multi-label", INPUTS, np.array([[0.5], [1], [0], [0]]), "labels must be 0 or 1, got 0.5 for example 0"),
        ("multi-label", INPUTS, np.array(["yes", "no", "no", "no"]), "the targets of multi-label must be numbers"),
        ("next-token", TOKENS, TOKENS * 0.5, "the targets of next-token must be whole numbers [N, T]"),
        ("next-token", TOKENS, TOKENS[:, :1], "a next token for each place of a sequence: [4, 2] of inputs, got"),
        ("next-token", TOKENS, TOKENS - 5, "tokens are 0 or more, and -100 where a next token does not count, got -5"),
        ("next-token", TOKENS, TOKENS[:, 0], "the targets of next-token must be whole numbers [N, T]"),
        ("next-token", TOKENS, np.full((4, 2), IGNORED), "some next token must count, got -100 at all places"),
        ("classification", INPUTS, np.zeros((4, 2)), "labels must be whole numbers from 0, or texts, one per example"),
    ],
)
def test_a_wrong_target_is_one_line(task: TaskName, inputs: Any, targets: Any, line: str) -> None:
    with pytest.raises(DataError) as raised:
        dataset_of((inputs, targets), name="mine", where="mine", task=task)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_tokens_beyond_those_there_are_said_to_be_are_told() -> None:
    found = {"inputs": TOKENS, "targets": TOKENS, "num_tokens": 3}
    with pytest.raises(DataError, match=r"tokens must lie in \[0, 3\), got 3"):
        dataset_of(found, name="mine", where="mine", task="next-token")


def test_targets_come_in_the_form_of_their_task() -> None:
    regression = dataset_of((INPUTS, np.arange(4)), name="mine", where="mine", task="regression")
    assert (regression.targets.dtype, tuple(regression.targets.shape)) == (torch.float32, (4, 1))
    labels = dataset_of((INPUTS, np.eye(4) > 0), name="mine", where="mine", task="multi-label")
    assert (labels.targets.dtype, labels.num_classes) == (torch.float32, 4)
    tokens = dataset_of({"inputs": TOKENS}, name="mine", where="mine", task="next-token")
    assert tokens.inputs.tolist() == TOKENS[:, :1].tolist()
    assert tokens.targets.tolist() == TOKENS[:, 1:].tolist()
    assert tokens.num_classes == tokens.sizes()["num_tokens"] == 4


def test_a_data_set_says_its_task_and_another_one_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = Dataset("mine", torch.zeros(3, 2), torch.ones(3), num_classes=1, task="regression")
    assert dataset.targets.shape == (3, 1)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"task": {"name": "regression"}}))
    assert main(["check", str(tmp_path / "config.yaml")]) == 2
    said = capsys.readouterr().err
    assert (
        "data set 'digits' has the targets of classification, but task.name is regression: sources of any task are npz"
        in said
    )
    assert said.count("\n") == 1


def test_partitioners_by_class_are_for_classes_and_tenths_of_a_regression() -> None:
    check_partition("dirichlet", "classification")
    check_partition("dirichlet", "regression")
    check_partition("iid", "next-token")
    for task in ("multi-label", "next-token"):
        with pytest.raises(DataError, match=f"by their classes, which those of {task} have not: take iid"):
            check_partition("labels", task)
    values = torch.arange(20.0).flip(0)
    found = Dataset("mine", torch.zeros(20, 1), values, num_classes=1, task="regression").strata()
    assert found.tolist() == [9, 9, 8, 8, 7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("task", "line"),
    [
        ({"name": "ranking"}, "task.name: "),
        (
            {"name": "regression", "metrics": ["accuracy"]},
            "'accuracy' is for classification, not for regression",
        ),
        (
            {"name": "regression", "loss": "cross-entropy"},
            "is for classification and next-token, not for",
        ),
        (
            {"name": "regression", "metrics": ["rsme"]},
            "'rsme' (did you mean 'rmse'?); known for regression: mae",
        ),
        ({"metrics": ["macro-f1", "macro-f1"]}, "none of them twice"),
    ],
)
def test_a_task_that_there_is_not_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: dict[str, Any], line: str
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"task": task}))
    assert main(["check", str(tmp_path / "config.yaml")]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1
