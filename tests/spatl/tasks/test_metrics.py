"""Metrics against hand-worked values, against scikit-learn, and pooled against the examples of all clients together."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch import Tensor

from spatl.errors import ConfigError
from spatl.rounds.best import Best, better_of
from spatl.tasks.metrics import METRICS, make_metrics
from spatl.tasks.pooling import together
from spatl.tasks.targets import IGNORED, TASKS, TaskName
from spatl.tasks.task import Measure, make_task

NEAR = 1e-6


def examples(task: TaskName, number: int, seed: int, *, outputs: int = 3) -> tuple[Tensor, Tensor]:
    """Random outputs of a network, float32, and targets for them."""
    draws = torch.Generator().manual_seed(seed)
    if task == "next-token":
        targets = torch.randint(outputs, (number, 4), generator=draws)
        targets[torch.rand(number, 4, generator=draws) < 0.3] = IGNORED
        targets[0, 0] = 0
        return torch.randn(number, 4, outputs, generator=draws), targets
    found = torch.randn(number, outputs, generator=draws)
    if task == "classification":
        return found, torch.randint(outputs, (number,), generator=draws)
    if task == "multi-label":
        return found, (torch.rand(number, outputs, generator=draws) < 0.4).float()
    return found, torch.randn(number, outputs, generator=draws)


def measured(task: TaskName, metric: str, outputs: Tensor, targets: Tensor) -> float:
    return make_task(task, metrics=[metric]).measures([(outputs, targets)])[0].value


def expected(task: TaskName, metric: str, outputs: Tensor, targets: Tensor) -> float:
    """The metric by scikit-learn, of examples for which it is defined."""
    scores, true = outputs.double().numpy(), targets.numpy()
    if task == "next-token":
        counts = true != IGNORED
        shares = torch.from_numpy(scores).softmax(-1).numpy()[counts]
        if metric == "perplexity":
            return math.exp(sk.log_loss(true[counts], shares, labels=range(shares.shape[-1])))
        return float(sk.accuracy_score(true[counts], scores[counts].argmax(-1)))
    if task == "regression":
        functions: dict[str, Any] = {
            "mae": sk.mean_absolute_error, "rmse": sk.root_mean_squared_error, "r2": sk.r2_score,
        }  # fmt: skip
        return float(functions[metric](true, scores))
    hot = true if task == "multi-label" else np.eye(scores.shape[1])[true]
    shares = scores if task == "multi-label" else torch.from_numpy(scores).softmax(1).numpy()
    seen = [k for k in range(hot.shape[1]) if 0 < hot[:, k].sum() < len(hot)]
    there = [k for k in range(hot.shape[1]) if hot[:, k].any()]
    predicted = (scores > 0) if task == "multi-label" else scores.argmax(1)
    by_sklearn: dict[str, Any] = {
        "accuracy": lambda: sk.accuracy_score(true, predicted),
        "label-accuracy": lambda: 1 - sk.hamming_loss(true, predicted),
        "balanced-accuracy": lambda: sk.balanced_accuracy_score(true, predicted),
        "macro-f1": lambda: sk.f1_score(true, predicted, average="macro", zero_division=np.nan),
        "auroc": lambda: np.mean([sk.roc_auc_score(hot[:, k], shares[:, k]) for k in seen]),
        "average-precision": lambda: np.mean([sk.average_precision_score(hot[:, k], shares[:, k]) for k in there]),
    }
    return float(by_sklearn[metric]())


EACH = [(task, metric) for task in METRICS for metric in METRICS[task]]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "metric"), EACH)
@settings(max_examples=25, deadline=None)
@given(number=st.integers(12, 40), seed=st.integers(0, 2**31))
def test_a_metric_is_what_scikit_learn_says(task: TaskName, metric: str, number: int, seed: int) -> None:
    outputs, targets = examples(task, number, seed)
    if task == "classification":
        targets[:3] = torch.arange(3)  # scikit-learn warns of a prediction of a class that there is not
    value = expected(task, metric, outputs, targets)
    assert measured(task, metric, outputs, targets) == pytest.approx(value, abs=NEAR, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "metric"), EACH)
@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5), seed=st.integers(0, 2**31))
def test_the_pooled_value_is_that_of_all_examples_together(
    task: TaskName, metric: str, sizes: list[int], seed: int
) -> None:
    """And the error that is told of a curve's is none that it exceeds."""
    made = make_task(task, metrics=[metric])
    outputs, targets = examples(task, sum(sizes), seed)
    parts = list(zip(outputs.split(sizes), targets.split(sizes), strict=True))
    told = together(made, [made.measures([part]) for part in parts])
    key, everything = metric.replace("-", "_"), measured(task, metric, outputs, targets)
    pooled, error = told[f"{key}_pooled"], told.get(f"{key}_pooled_error", 0.0)
    assert (pooled is None) == math.isnan(everything)
    if pooled is not None:
        assert error is not None
        assert abs(pooled - everything) <= error + NEAR
    values = [v for v in (measured(task, metric, *part) for part in parts) if not math.isnan(v)]
    assert told[f"{key}_mean"] == pytest.approx(np.mean(values) if values else None)


def test_metrics_of_two_clients_worked_by_hand() -> None:
    """Two labels, four examples.

    The first label is right of one that has it, missed of one, and wrongly given to one: F1 2 / (2 + 2) = 1/2. The
    second is right of one and nothing else: 1. Macro F1 3/4, and 6 of 8 labels are right.

    The first client has the examples in which all is right, F1 1; the second the others, where the second label neither
    is nor is predicted and is left out: F1 0. Their mean is 1/2.
    """
    outputs = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [-1.0, -1.0], [1.0, -1.0]])
    targets = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    task = make_task("multi-label", metrics=["macro-f1", "label-accuracy"])
    told = together(task, [task.measures([(outputs[part], targets[part])]) for part in (slice(2), slice(2, 4))])
    assert told == {
        "macro_f1_mean": 0.5, "macro_f1_pooled": 0.75, "label_accuracy_mean": 0.75, "label_accuracy_pooled": 0.75,
    }  # fmt: skip


def test_errors_are_in_the_targets_own_units() -> None:
    """Targets of mean 100 and deviation 10: an error of 0.5 is one of 5, and 1.5 of 15; R2 has no unit."""
    task = make_task("regression", means=[100.0], deviations=[10.0])
    found = task.measures([(torch.tensor([[0.5], [0.5]]), torch.tensor([[1.0], [-1.0]]))])
    mae, rmse, r2 = (each.value for each in found)
    assert mae == pytest.approx((5 + 15) / 2)
    assert rmse == pytest.approx(math.sqrt((5**2 + 15**2) / 2))
    assert r2 == pytest.approx(1 - (0.5**2 + 1.5**2) / 2)


@pytest.mark.parametrize("metric", ["auroc", "average-precision"])
def test_a_curve_of_sure_logits_goes_by_their_order(metric: str) -> None:
    """Differences of 40 to 70: shares of the softmax are all 1 in float64, and the log odds are not."""
    outputs, targets = torch.tensor([[0.0, 40], [0, 50], [0, 60], [0, 70]]), torch.tensor([0, 0, 1, 1])
    assert measured("classification", metric, outputs, targets) == 1.0
    turned = torch.tensor([[0.0, 40], [0, 60], [0, 50], [0, 70]])  # of either class 3 of 4 pairs; precisions 1 and 2/3
    right = {"auroc": 3 / 4, "average-precision": (1 + 2 / 3) / 2}[metric]
    assert measured("classification", metric, turned, targets) == pytest.approx(right)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "multi-label"])
@pytest.mark.parametrize("metric", ["auroc", "average-precision"])
@settings(max_examples=15, deadline=None)
@given(number=st.integers(4, 20), seed=st.integers(0, 2**31), scale=st.sampled_from([1e-4, 1.0, 100.0]))
def test_a_trial_goes_by_the_curve_itself(task: TaskName, metric: str, number: int, seed: int, scale: float) -> None:
    """Its score is the exact one, also of logits in one bin; a part is n times it less n - 1 times the others'."""
    outputs, targets = examples(task, number, seed)
    outputs = scale * outputs
    made, exact = make_task(task, metrics=[metric]), measured(task, metric, outputs, targets)
    kept = [torch.arange(number) != left_out for left_out in range(number)]
    others = [measured(task, metric, outputs[each], targets[each]) for each in kept]
    score, parts = made.merits(outputs, targets)
    if any(math.isnan(each) for each in [exact, *others]):
        assert (score, float(parts.abs().max())) == (0.0, 0.0)
        return
    assert score == pytest.approx(exact)
    assert parts.tolist() == pytest.approx([number * exact - (number - 1) * each for each in others])


def test_what_examples_do_not_define_is_not_a_number() -> None:
    """R2 of one example, and the AUROC of labels that all have."""
    assert math.isnan(measured("regression", "r2", torch.zeros(1, 1), torch.ones(1, 1)))
    assert math.isnan(measured("multi-label", "auroc", torch.randn(3, 2), torch.ones(3, 2)))
    none = together(make_task("regression", metrics=["r2"]), [])
    assert none == {"r2_mean": None, "r2_pooled": None}


def test_the_order_of_clients_changes_no_bit() -> None:
    task = make_task("regression")
    told = [task.measures([examples("regression", 7, seed)]) for seed in range(6)]
    assert together(task, told) == together(task, told[::-1])


@pytest.mark.parametrize("task", TASKS)
def test_parts_of_a_score_have_its_mean_and_standard_error(task: TaskName) -> None:
    """By the jackknife: their mean is the score but for its bias, and for a mean over examples exactly it."""
    outputs, targets = examples(task, 30, 5)
    score, parts = make_task(task).merits(outputs, targets)
    assert parts.shape == (30,)
    assert parts.dtype == torch.float64
    assert float(parts.mean()) == pytest.approx(score, abs=0.05)
    if task == "regression":
        each = -(outputs - targets).abs().mean(1).double()
        assert torch.allclose(parts, each, atol=1e-6)


def test_a_score_that_is_not_defined_decides_nothing() -> None:
    task = make_task("multi-label", metrics=["auroc"])
    score, parts = task.merits(torch.randn(4, 2), torch.ones(4, 2))
    assert score == 0
    assert not parts.any()


def test_the_worst_of_errors_is_the_largest() -> None:
    assert make_task("regression").worst([1.0, 3.0, 2.0]) == 3.0
    assert make_task("classification").worst([0.5, 0.7]) == 0.5
    assert make_task("regression").is_better(1.0, 2.0)


def test_the_best_round_is_the_best_in_the_direction_of_the_score() -> None:
    """Of errors the least; of equal ones the first."""
    task, best = make_task("regression"), None
    for server_round, mae in enumerate((3.0, 2.0, 2.0, 5.0), start=1):
        best = better_of(best, mae, server_round, task=task)
    assert best == Best(2.0, 2)


def test_a_metric_of_ones_own_has_a_mean_and_perhaps_a_pooled_value() -> None:
    task = make_task(
        "regression", metrics=["tests.support.users_tasks:largest_error", "tests.support.users_tasks:BIAS"]
    )
    outputs, targets = torch.tensor([[1.0], [4.0]]), torch.tensor([[0.0], [2.0]])
    told = together(task, [task.measures([(outputs, targets)]), task.measures([(-outputs, targets)])])
    assert not task.score.higher_is_better
    assert told == {"largest_error_mean": 4.0, "bias_mean": -1.0, "bias_pooled": -1.0}


@pytest.mark.parametrize(
    ("name", "task", "line"),
    [
        ("mae", "classification", "unknown metric 'mae'; known: accuracy, balanced-accuracy"),
        ("tests.support.users_tasks:nothing", "regression", "has no 'nothing'"),
        ("tests.support.users_tasks:A_NUMBER", "regression", "must be a spatl.tasks.metrics.Metric, or a function"),
        (
            "tests.support.users_tasks:accuracy",
            "classification",
            "is called 'accuracy', as one that is built in",
        ),
    ],
)
def test_a_metric_that_there_is_not_is_told(name: str, task: TaskName, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        make_metrics([name], task)


def test_a_measure_holds_numbers_alone() -> None:
    """So that two evaluations can be compared, and none keeps tensors of a device."""
    found = make_task("classification").measures([examples("classification", 5, 1)])[0]
    assert isinstance(found, Measure)
    assert found.sums[1] == 5
    assert all(type(each) is float for each in found.sums)
