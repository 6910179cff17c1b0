"""Tests of means, and of their errors over examples and over networks."""

import math

import pytest
import torch

from spatl.experiments.measures import Measure, rows_of


def measures(own, control):
    """The measures of one network: a way and its control."""
    values = [torch.tensor(each, dtype=torch.float64) for each in (own, control)]
    return [Measure("claim", "righted", "k = 3", "z", values[0], "random"),
            Measure("claim", "righted", "k = 3", "random", values[1])]  # fmt: skip


def test_a_gain_is_paired_by_example_and_its_errors_are_those_of_the_differences():
    """Differences 1, 0, 1, 0 on one network and 0, 0, 0, 2 on the other: means 1/2 and 1/2.

    Their variances are 1/3 and 1, so that the squared errors are 1/12 and 1/4, and that of the mean of both is a
    quarter of their sum, 1/12. The networks' gains are equal, and have no spread.
    """
    first, control = rows_of([measures([1, 0, 1, 1], [0, 0, 0, 1]), measures([0, 1, 1, 2], [0, 1, 1, 0])])
    assert (first.way, first.num_examples, first.networks, first.mean) == ("z", 8, (0.75, 1.0), 0.875)
    assert first.gain == 0.5
    assert first.gain_error == pytest.approx(math.sqrt(1 / 12))
    assert first.gain_spread == 0.0
    assert (control.gain, control.gain_error, control.gain_spread) == (None, None, None)
    assert control.mean == (0.25 + 0.5) / 2


def test_the_spread_is_that_of_the_networks():
    """Gains 0, 1 and 2: standard deviation 1, over the root of three."""
    row, _ = rows_of([measures([gain, gain], [0, 0]) for gain in (0.0, 1.0, 2.0)])
    assert row.gain_error == 0.0
    assert row.gain_spread == pytest.approx(1 / math.sqrt(3))


def test_one_network_has_no_spread_and_one_value_no_error():
    row, _ = rows_of([measures([1.0], [0.5])])
    assert (row.gain, row.gain_error, row.gain_spread) == (0.5, 0.0, None)
