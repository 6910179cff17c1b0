"""Rows of a run, as they are read."""

import math
import re

import pytest

from spatl.history import append_lines, keep_rounds, latest_accuracy, read_json, read_lines, write_json


@pytest.mark.parametrize(
    ("row", "accuracy"),
    [
        ({"accuracy": 0.5, "final_accuracy": None}, 0.5),
        ({"accuracy": 0.5, "final_accuracy": 0.25}, 0.25),
        ({"accuracy": 0.5, "final_accuracy": 0.0}, 0.0),
        ({"accuracy": 0.0, "final_accuracy": None}, 0.0),
        ({"accuracy": None, "final_accuracy": 0.0}, 0.0),
        ({"accuracy": None, "final_accuracy": None}, None),
        ({}, None),
    ],
)
def test_the_latest_accuracy_is_the_final_one_where_there_is_one_and_zero_is_one(row, accuracy):
    assert latest_accuracy(row) == accuracy


def test_json_has_no_infinity_and_no_nan(tmp_path):
    """Python's own writer makes `Infinity` of a client without a limit, which no other program reads as JSON."""
    row = {"round": 1, "limit": math.inf, "nested": [{"a": -math.inf, "b": (math.nan, 0.5)}], 3: "three"}
    as_read = {"round": 1, "limit": None, "nested": [{"a": None, "b": [None, 0.5]}], "3": "three"}
    append_lines(tmp_path / "rows.jsonl", [row])
    write_json(tmp_path / "one.json", row)
    assert read_lines(tmp_path / "rows.jsonl") == [as_read]
    assert read_json(tmp_path / "one.json") == as_read
    assert keep_rounds(tmp_path / "rows.jsonl", 1) == [as_read]
    for name in ("rows.jsonl", "one.json"):
        assert not re.search("Infinity|NaN", (tmp_path / name).read_text())
