"""Measures of an evaluation on the wire: what is told comes back, and what no examples have is refused."""

import math

import numpy as np
import pytest

from spatl.errors import UpdateRejected
from spatl.tasks.targets import TASKS, TaskName
from spatl.tasks.task import CLASSIFICATION, Measure, make_task
from spatl.wire.measures import Judging
from spatl.wire.reports import EvaluateReport
from tests.support.measured import judging_of, told


@pytest.mark.parametrize("task", TASKS)
def test_what_is_told_comes_back(task: TaskName) -> None:
    """Beside a report, with its digest; also of no examples, whose values are unknown and whose sums are 0."""
    judging = judging_of(task)
    measures = told(judging)
    report = EvaluateReport(num_examples=4, accuracy=measures[0].value, loss=0.5, measures=measures)
    assert len(report.to_bytes(judging)) == 28 + judging.num_bytes
    found = EvaluateReport.from_bytes(report.to_bytes(judging), judging, most_examples=4)
    assert [each.sums for each in found.measures] == [each.sums for each in measures]
    assert [each.value for each in found.measures] == pytest.approx([each.value for each in measures], nan_ok=True)
    nothing = EvaluateReport(num_examples=4, accuracy=math.nan, loss=math.nan)
    found = EvaluateReport.from_bytes(nothing.to_bytes(judging), judging, most_examples=0)
    assert all(math.isnan(each.value) for each in found.measures)
    assert not any(number for each in found.measures for number in each.sums)


def test_a_classification_by_accuracy_sends_its_28_bytes() -> None:
    report = EvaluateReport(num_examples=4, accuracy=0.5, loss=0.5)
    assert report.to_bytes(Judging(CLASSIFICATION, 10)) == report.to_bytes()
    assert len(report.to_bytes()) == 28


@pytest.mark.parametrize(
    ("task", "metric", "place", "number", "line"),
    [
        ("classification", "macro-f1", 0, 9, "the sums of macro-f1 say more correct examples of a class than it has"),
        ("multi-label", "label-accuracy", 0, 99, "say more correct ones than there are"),
        ("multi-label", "label-accuracy", 1, 120, "are of 40 examples, the client has 4"),
        ("classification", "balanced-accuracy", 6, 77, "say other numbers of examples predicted than there are"),
        ("next-token", "token-accuracy", 1, 12, "are of 6 examples, the client has 4"),
        ("regression", "r2", -1, -79.0, "say -79 examples"),
        ("regression", "mae", -1, 0.5, "say 0.5 examples"),
        ("regression", "rmse", -1, 0.0, "say sums of no examples"),
        ("regression", "mae", 0, -1.0, "say sums of errors below 0"),
        ("regression", "mae", 0, math.nan, "must be finite and at most"),
        ("regression", "rmse", 3, 5.0, "are of 5 examples, the client has 4"),
        ("regression", "r2", 3, 1e6, "say a sum larger than its squares allow"),
        ("next-token", "perplexity", 1, 1.0, "the score is"),
    ],
)
def test_what_no_examples_have_is_refused(task: TaskName, metric: str, place: int, number: float, line: str) -> None:
    judging = judging_of(task, metric)
    (measure,) = told(judging)
    forms = np.array(measure.sums, dtype="<u4" if judging.task.score.counts else "<f8")
    forms[place] = number
    with pytest.raises(UpdateRejected, match=line):
        judging.from_bytes(forms.tobytes(), score=measure.value, most_examples=4)


def test_a_value_that_no_scores_with_these_counts_have_is_refused() -> None:
    judging = judging_of("multi-label", "auroc")
    (measure,) = told(judging)
    data = judging.to_bytes([Measure(measure.value + 0.2, measure.sums)])
    with pytest.raises(UpdateRejected, match="which no scores with those counts have"):
        judging.from_bytes(data, score=measure.value + 0.2)
    with pytest.raises(UpdateRejected, match="expected 1544 bytes of measures, got 1543"):
        judging.from_bytes(data[1:], score=measure.value)


def test_a_score_beyond_its_metric_is_refused_in_a_report() -> None:
    """An R2 may be below 0 and not above 1; an MAE is not below 0."""
    for task, metric, fits, not_so in (("regression", "r2", -5.0, 1.5), ("regression", "mae", 5.0, -1.0)):
        judging = judging_of(task, metric)
        judging.check_score(fits)
        with pytest.raises(UpdateRejected, match="the score must lie in"):
            judging.check_score(not_so)


def test_errors_are_read_in_the_targets_units() -> None:
    judging = judging_of("regression", "mae", means=[0.0, 0, 0], deviations=[10.0, 10, 10])
    plain = judging_of("regression", "mae")
    data = judging.to_bytes(told(judging))
    assert data == plain.to_bytes(told(plain))
    (found,) = judging.from_bytes(data, score=told(judging)[0].value)
    assert found.value == pytest.approx(10 * told(plain)[0].value)


def test_numbers_of_more_tokens_and_examples_than_there_are_are_refused() -> None:
    """Perplexity of 10^60 tokens of four sequences of two; ten examples that are each of ten classes."""
    judging = judging_of("next-token", "perplexity")
    with pytest.raises(UpdateRejected, match="the client has 4"):
        judging.from_bytes(np.array([0.0, 1e60], dtype="<f8").tobytes(), score=1.0, most_examples=4)
    of_classes = Judging(make_task("classification", metrics=["macro-f1"]), 10)
    counts = np.full(30, 10, dtype="<u4")
    with pytest.raises(UpdateRejected, match="are of 100 examples, the client has 10"):
        of_classes.from_bytes(counts.tobytes(), score=1.0, most_examples=10)


def test_bins_of_classes_are_of_the_same_examples_for_each_class() -> None:
    judging = judging_of("classification", "auroc")
    (measure,) = told(judging)
    counts = np.array(measure.sums, dtype="<u4")
    counts[0] += 1
    with pytest.raises(UpdateRejected, match="say other numbers of examples of one class than of all"):
        judging.from_bytes(np.float64(measure.value).tobytes() + counts.tobytes(), score=measure.value)
