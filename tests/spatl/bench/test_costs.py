"""What an accuracy cost: rounds, bytes, seconds, by first touch and held."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatl.bench.costs import Point, first_touch, held, trajectory


def row(number, accuracy, up, down, seconds, **more):
    return {
        "round": number,
        "accuracy": accuracy,
        "uplink_bytes": up,
        "downlink_bytes": down,
        "seconds": seconds,
        **more,
    }


HISTORY = [
    row(1, 0.1, up=10, down=100, seconds=1.0),
    row(2, 0.5, up=10, down=20, seconds=2.0),
    row(3, 0.4, up=10, down=20 + 50, seconds=4.0, final_accuracy=0.6),
]


def test_an_accuracy_on_arrival_cost_the_rounds_before_and_its_own_downlink():
    """Round 1 arrives for 100; round 2 for 110 + 20; round 3 for 110 + 30 + 20, without the 50 of the final encoder.

    All three rounds, the final encoder included, come to 110 + 30 + 80 = 220.
    """
    assert trajectory(HISTORY, final_downlink_bytes=50) == [
        Point(0, 100, 0.0, 0.1),
        Point(1, 130, 1.0, 0.5),
        Point(2, 160, 3.0, 0.4),
        Point(3, 220, 7.0, 0.6),
    ]


def test_a_round_that_nobody_measured_is_no_point_but_its_bytes_count():
    history = [row(1, 0.1, 10, 100, 1.0), row(2, None, 0, 20, 2.0), row(3, 0.3, 10, 20, 1.0)]
    assert trajectory(history) == [Point(0, 100, 0.0, 0.1), Point(2, 150, 3.0, 0.3)]


def test_points_carry_the_loss_that_was_measured():
    row = {"uplink_bytes": 10, "downlink_bytes": 10, "seconds": 1.0, "accuracy": 0.5}
    history = [
        {**row, "round": 1, "loss": 2.0},
        {**row, "round": 2, "loss": None, "final_accuracy": 0.6, "final_loss": 0.0},
    ]
    assert [point.loss for point in trajectory(history)] == [2.0, None, 0.0]


def points(accuracies):
    return [Point(number, 100 * (number + 1), float(number), value) for number, value in enumerate(accuracies)]


def test_held_is_the_third_in_a_row_and_a_dip_starts_over():
    run = points([0.1, 0.8, 0.7, 0.8, 0.8, 0.9, 0.2])
    assert first_touch(run, 0.8) == run[1]
    assert held(run, 0.8) == run[5]
    assert held(run, 0.85) is None
    assert first_touch(run, 0.95) is None


@pytest.mark.slow
@given(accuracies=st.lists(st.floats(0, 1), max_size=20), target=st.floats(0, 1))
def test_a_target_is_touched_before_it_is_held_and_a_lower_one_no_later(accuracies, target):
    run = points(accuracies)
    touch, hold = first_touch(run, target), held(run, target)
    if hold is not None:
        assert touch is not None
        assert touch.rounds <= hold.rounds - 2
        lower = held(run, target / 2)
        assert lower is not None
        assert lower.rounds <= hold.rounds
    if touch is not None:
        assert touch.accuracy >= target - 1e-9


def test_a_mean_of_clients_that_are_all_at_the_target_reaches_it():
    """The mean of 0.7 ten times over may be 0.7 less 1e-16; the criterion is not how a sum was rounded."""
    below = 0.7 - 2**-53
    points = [Point(number, 10 * number, 1.0 * number, below) for number in range(4)]
    assert first_touch(points, 0.7) == points[0]
    assert held(points, 0.7) == points[2]
    assert first_touch([Point(0, 0, 0.0, 0.7 - 1e-6)], 0.7) is None
