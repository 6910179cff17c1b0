"""Pauses between questions for work: short after work, Flower's own when there is none."""

import pytest

from spatl.deployment.pauses import Pauses


def slept(growth, asked):
    """The pauses that so many questions wait, in seconds; None stands for work that is told of."""
    pauses = list[float]()
    between = Pauses(growth, pauses.append)
    for seconds in asked:
        if seconds is None:
            between.begin_anew()
        else:
            between.sleep(seconds)
    return pauses


def test_they_grow_from_a_tenth_of_a_second_to_what_was_asked_for_and_no_further():
    """0.1 doubled: 0.2, 0.4, 0.8, and 1.6 is more than the second that was asked for."""
    assert slept(2, [1.0] * 6) == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


def test_work_makes_them_short_again_told_or_seen_by_another_kind_of_pause():
    assert slept(2, [1.0, 1.0, 1.0, None, 1.0, 1.0]) == pytest.approx([0.1, 0.2, 0.4, 0.1, 0.2])
    assert slept(2, [3.0, 3.0, 3.0, 0.5, 0.5, 3.0, 3.0]) == pytest.approx([0.1, 0.2, 0.4, 0.1, 0.2, 0.1, 0.2])


def test_none_is_longer_than_what_was_asked_for():
    assert slept(2, [0.05, 0.05, 0.01]) == [0.05, 0.05, 0.01]
