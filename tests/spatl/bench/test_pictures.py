"""What the curves of a benchmark show."""

import pytest

from spatl.bench.costs import Point
from spatl.bench.pictures import curve_words, draw_accuracy
from spatl.bench.results import Curve
from spatl.plots import new_figure


def curve(label, seed, accuracies, *, ended=True, cost=100):
    points = tuple(Point(number, cost * (number + 1), float(number), value) for number, value in enumerate(accuracies))
    return Curve(label, seed, points, {"0": accuracies[-1]} if ended else {})


CURVES = {
    "SPATL": [curve("spatl", 1, [0.1, 0.4, 0.8]), curve("spatl", 2, [0.3, 0.6, 0.6]),
              curve("spatl", 3, [0.1, 0.0], ended=False)],
    "FedAvg": [curve("fedavg", 1, [0.1, 0.2], ended=False, cost=1000)],
    "Training alone": [curve("local", 1, [0.1, 0.3, 0.5], cost=1)],
}  # fmt: skip


def drawn(against):
    with new_figure(8, 5) as figure:
        axes = figure.subplots()
        draw_accuracy(axes, CURVES, against=against, targets=[(0.7, True), (0.2, False)], alone="Training alone")
        return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}


def test_a_curve_is_the_mean_of_the_seeds_that_ended_and_says_how_many():
    lines = drawn("rounds")
    assert lines["SPATL (2 of 3 seeds)"] == [[0.0, pytest.approx(0.2)], [1.0, 0.5], [2.0, pytest.approx(0.7)]]


def test_a_row_of_which_no_seed_ended_is_drawn_as_far_as_it_went():
    assert drawn("rounds")["FedAvg"] == [[0.0, 0.1], [1.0, 0.2]]


def test_against_bytes_training_alone_is_level_because_it_needs_none():
    lines = drawn("bytes")
    assert {place[1] for place in lines["Training alone, at the end"]} == {0.5}
    assert [place[0] for place in lines["SPATL (2 of 3 seeds)"]] == [100.0, 200.0, 300.0]
    assert drawn("seconds")["Training alone"][-1] == [2.0, 0.5]


def test_the_words_say_where_every_row_ends():
    assert "Training alone ends at 0.500 after 3 B" in curve_words(CURVES)


def test_near_one_the_axis_gives_every_halving_of_the_errors_the_same_room():
    """0.8, 0.9 and 0.95 stand about as far apart as each other; below 0.9 the axis stays as it is."""
    places = {}
    for best in (0.6, 0.96):
        curves = {"SPATL": [curve("spatl", 1, [0.1, 0.5, best])]}
        with new_figure(8, 5) as figure:
            axes = figure.subplots()
            draw_accuracy(axes, curves, against="rounds", targets=[], alone=None)
            figure.canvas.draw()
            places[best] = [float(axes.transData.transform((0, accuracy))[1]) for accuracy in (0.8, 0.9, 0.95)]
            assert all(0.0 <= end <= 1.01 for end in axes.get_ylim())
    low, middle, high = places[0.6]
    assert middle - low == pytest.approx(2 * (high - middle), rel=0.01)
    low, middle, high = places[0.96]
    assert middle - low == pytest.approx(high - middle, rel=0.1)
