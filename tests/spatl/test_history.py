"""Rows of a run, as they are read."""

import pytest

from spatl.history import latest_accuracy


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
