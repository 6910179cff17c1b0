"""A client's numbers as bytes: within their ranges, or refused."""

from dataclasses import replace

import pytest

from spatl.errors import UpdateRejected
from spatl.wire.blob import with_digest
from spatl.wire.reports import EvaluateReport, TrainReport
from tests.support.messages import LAYOUT, REPORT, packed, unpack

SENT = [name for name, value in vars(REPORT).items() if isinstance(value, float) and name != "keep_ratio"]
"""The numbers of a report but for the share of entries that is sent, which the update itself says."""
EVALUATION = EvaluateReport(num_examples=20, accuracy=0.75, loss=0.5)


@pytest.mark.parametrize("report", [REPORT, EVALUATION])
def test_a_report_comes_through(report):
    data = report.to_bytes()
    assert len(data) == report.num_bytes()
    assert type(report).from_bytes(data) == (replace(REPORT, keep_ratio=1.0) if report is REPORT else report)


@pytest.mark.parametrize(("report", "seal"), [(REPORT, bytes), (EVALUATION, with_digest)])
def test_a_report_of_another_length_is_refused(report, seal):
    data = report.to_bytes()[: 39 if report is REPORT else 20]
    for wrong in (b"", data[:-1], data + b"\0"):
        with pytest.raises(UpdateRejected, match=f"expected a report of {len(data)} bytes, got {len(wrong)}"):
            type(report).from_bytes(seal(wrong))


@pytest.mark.parametrize("name", SENT)
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
        ("flops_ratio", 2.0),
        ("budget_kind", 200),
        ("validation_gain", 1.5),
    ],
)
def test_a_number_of_a_report_beyond_its_range_is_refused(name, value):
    with pytest.raises(UpdateRejected, match=f"the report's {name} must lie in"):
        TrainReport.from_bytes(replace(REPORT, **{name: value}).to_bytes())


def test_numbers_come_through_as_short_decimals_and_seconds_of_more_than_a_day_as_18_hours():
    """float32 has seven digits and float16 three; 0.8 is neither's, and comes out as 0.8 all the same."""
    told = replace(REPORT, budget_limit=0.8, train_loss=1.23456789, seconds=1e5, selection_seconds=0.125)
    seen = TrainReport.from_bytes(told.to_bytes())
    assert (seen.budget_limit, seen.train_loss) == (0.8, 1.2345679)
    assert (seen.seconds, seen.selection_seconds) == (65500.0, 0.125)


@pytest.mark.parametrize("place", [29, 31, 33, 35, 37])
def test_a_number_in_half_precision_that_is_infinite_is_refused(place):
    data = bytearray(REPORT.to_bytes())
    data[place : place + 2] = b"\x00\x7c"
    with pytest.raises(UpdateRejected, match="must lie in"):
        TrainReport.from_bytes(bytes(data))


def test_a_client_may_say_that_it_has_no_limit():
    assert TrainReport.from_bytes(replace(REPORT, budget_limit=float("inf")).to_bytes()).budget_limit == float("inf")


def test_a_report_that_is_refused_refuses_its_update():
    with pytest.raises(UpdateRejected, match="the report's accuracy"):
        unpack(packed([True] * LAYOUT.num_channels, report=replace(REPORT, accuracy=2.0))[0])


@pytest.mark.parametrize("name", ["accuracy", "flops_ratio", "validation_gain"])
def test_a_share_that_rounding_took_beyond_its_range_is_its_end(name):
    """The smallest case seen was a flops_ratio of 1.0000000000000067, for which every update was refused."""
    for off, end in ((1 + 6.7e-15, 1.0), (-6.7e-15, 0.0)):
        blob = replace(REPORT, **{name: off}).to_bytes()
        assert getattr(TrainReport.from_bytes(blob), name) == end
