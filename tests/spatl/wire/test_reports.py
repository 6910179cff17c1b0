"""A client's numbers as bytes: within their ranges, or refused."""

from dataclasses import replace

import pytest

from spatl.errors import UpdateRejected
from spatl.wire.blob import with_digest
from spatl.wire.reports import EvaluateReport, TrainReport
from tests.support.messages import LAYOUT, REPORT, packed, unpack

EVALUATION = EvaluateReport(num_examples=20, accuracy=0.75, loss=0.5)


@pytest.mark.parametrize("report", [REPORT, EVALUATION])
def test_a_report_comes_through(report):
    data = report.to_bytes()
    assert len(data) == report.num_bytes()
    assert type(report).from_bytes(data) == report


@pytest.mark.parametrize(("report", "seal"), [(REPORT, bytes), (EVALUATION, with_digest)])
def test_a_report_of_another_length_is_refused(report, seal):
    data = report.to_bytes()[: 73 if report is REPORT else 20]
    for wrong in (b"", data[:-1], data + b"\0"):
        with pytest.raises(UpdateRejected, match=f"expected a report of {len(data)} bytes, got {len(wrong)}"):
            type(report).from_bytes(seal(wrong))


@pytest.mark.parametrize("name", [name for name, value in vars(REPORT).items() if isinstance(value, float)])
@pytest.mark.parametrize("value", [float("nan"), -1.0, -float("inf")])
def test_a_number_of_a_report_that_is_none_or_negative_is_refused(name, value):
    with pytest.raises(UpdateRejected, match=f"the report's {name} must lie in"):
        TrainReport.from_bytes(replace(REPORT, **{name: value}).to_bytes())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_examples", 2**32 - 1),
        ("accuracy", 1.5),
        ("loss", 1e10),
        ("train_loss", float("inf")),
        ("keep_ratio", 1.01),
        ("flops_ratio", 2.0),
        ("budget_kind", 200),
        ("validation_gain", 1.5),
        ("training_seconds", 1e20),
        ("selection_seconds", float("inf")),
        ("decision_seconds", 1e10),
        ("seconds", 1e10),
    ],
)
def test_a_number_of_a_report_beyond_its_range_is_refused(name, value):
    with pytest.raises(UpdateRejected, match=f"the report's {name} must lie in"):
        TrainReport.from_bytes(replace(REPORT, **{name: value}).to_bytes())


def test_a_client_may_say_that_it_has_no_limit():
    assert TrainReport.from_bytes(replace(REPORT, budget_limit=float("inf")).to_bytes()).budget_limit == float("inf")


def test_a_report_that_is_refused_refuses_its_update():
    with pytest.raises(UpdateRejected, match="the report's accuracy"):
        unpack(packed([True] * LAYOUT.num_channels, report=replace(REPORT, accuracy=2.0))[0])


@pytest.mark.parametrize("name", ["accuracy", "keep_ratio", "flops_ratio", "validation_gain"])
def test_a_share_that_rounding_took_beyond_its_range_is_its_end(name):
    """The smallest case seen was a flops_ratio of 1.0000000000000067, for which every update was refused."""
    for off, end in ((1 + 6.7e-15, 1.0), (-6.7e-15, 0.0)):
        blob = replace(REPORT, **{name: off}).to_bytes()
        assert getattr(TrainReport.from_bytes(blob), name) == end
