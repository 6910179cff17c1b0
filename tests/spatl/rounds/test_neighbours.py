"""Rules by distances: exact on small numbers worked out by hand, and laws of all of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.rounds.neighbours import distances, weighted_trimmed_mean
from spatl.rounds.robust import spread_of
from spatl.rounds.rules import AGGREGATION_RULES
from tests.support.layouts import interleaved_layout, make_update
from tests.support.updates import LAYOUT, random_updates

RULES = ("multi-krum", "nnm", "centered-clipping", "geometric-median")
all_rules = pytest.mark.parametrize("rule", RULES)
PLANE = interleaved_layout([(2, 1)])
"""Two channels of one entry each."""
NAN = math.nan


def result_of(rule, points, numbers=None, *, trim_fraction=0.2, layout=PLANE):
    """What x, at 0, becomes of updates that are points; NaN for what a client does not send."""
    aggregator = AGGREGATION_RULES[rule].make(
        layout=layout, encoder=torch.zeros(layout.num_entries), control=None, total_examples=10**6,
        trim_fraction=trim_fraction,
    )  # fmt: skip
    for point, number in zip(points, numbers or [1] * len(points), strict=True):
        values = torch.tensor(point)
        sent = [bool((~values[layout.owner == channel].isnan()).any()) for channel in range(layout.num_channels)]
        aggregator.add(make_update(layout, sent, values), number)
    return aggregator.encoder()


def test_distances_are_over_what_two_have_in_common_scaled_to_the_whole():
    """(0, 0) and (3, 4) are 5 apart; (0, -) has only the first in common with (3, 4): 3 times the root of 2.

    (-, 4) and (0, -) have nothing in common.
    """
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, NAN], [NAN, 4.0]])
    found = distances(list(points))
    assert found.diagonal().tolist() == [0.0] * 4
    assert torch.equal(found, found.T)
    assert found[0].tolist() == pytest.approx([0.0, 5.0, 0.0, 4 * math.sqrt(2)])
    assert found[1].tolist() == pytest.approx([5.0, 0.0, 3 * math.sqrt(2), 0.0])
    assert found[2, 3] == math.inf


def test_multi_krum_by_hand():
    """Five on a line at 0, 1, 2, 3 and 100, f = 1: scores are the squares to the two nearest others.

    1 + 4, 1 + 1, 1 + 1, 1 + 4, 97^2 + 98^2: all but the last are chosen, and their mean is 1.5. With 1, 1, 1 and 7
    examples it is (0 + 1 + 2 + 21) / 10.
    """
    points = [[each, each] for each in (0.0, 1.0, 2.0, 3.0, 100.0)]
    assert result_of("multi-krum", points).tolist() == pytest.approx([1.5, 1.5])
    assert result_of("multi-krum", points, [1, 1, 1, 7, 1]).tolist() == pytest.approx([2.4, 2.4])


def test_nearest_neighbours_by_hand():
    """Five at 0, 1, 2, 4 and 100, f = 1: means of the four nearest, itself one of them.

    Of the first four they are 7/4 each; of 100, (1 + 2 + 4 + 100) / 4 = 26.75, which the trimmed mean leaves out.
    """
    points = [[each, -each] for each in (0.0, 1.0, 2.0, 4.0, 100.0)]
    assert result_of("nnm", points).tolist() == pytest.approx([1.75, -1.75])


def test_centered_clipping_by_hand():
    """Three at 0, 0 and 30, of two entries each: the centre is the median, 0, the distances 0, 0 and 30 * 2^0.5.

    The lower median of these is 0, so that nothing moves. With 0, 3 and 30 the centre is 3, the distances 3, 0 and 27
    times the root of 2, the radius 3 times that: the centre moves by (-3 + 0 + 3) / 3 = 0.
    """
    assert result_of("centered-clipping", [[0.0, 0.0], [0.0, 0.0], [30.0, 30.0]]).tolist() == [0.0, 0.0]
    assert result_of("centered-clipping", [[0.0, 0.0], [3.0, 3.0], [30.0, 30.0]]).tolist() == pytest.approx([3.0, 3.0])


def test_the_geometric_median_by_hand():
    """On a line it is the median; of the corners of a triangle it sees each side under 120 degrees.

    For (0, 0), (1, 0) and (0.5, 3^0.5 / 2) that is the centre, (0.5, 3^0.5 / 6). With most of the examples at one
    point, it is that point.
    """
    assert result_of("geometric-median", [[0.0, 0.0], [1.0, 1.0], [50.0, 50.0]]).tolist() == pytest.approx(
        [1.0, 1.0], abs=1e-3
    )
    triangle = [[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]]
    assert result_of("geometric-median", triangle).tolist() == pytest.approx([0.5, math.sqrt(3) / 6], abs=1e-6)
    heavy = result_of("geometric-median", triangle, [1, 1, 5])
    assert heavy.tolist() == pytest.approx(triangle[2], abs=1e-3)


@all_rules
def test_an_entry_is_of_those_that_sent_it(rule):
    """Six that agree; three of them do not send the second channel."""
    points = [[2.0, 5.0]] * 3 + [[2.0, NAN]] * 3
    assert result_of(rule, points).tolist() == pytest.approx([2.0, 5.0])


@pytest.mark.slow
@all_rules
@given(seed=st.integers(0, 2**32), number=st.integers(0, 6), data=st.data())
def test_the_order_of_replies_does_not_matter_and_what_nobody_sent_keeps_its_bits(rule, seed, number, data):
    updates = random_updates(seed, number)
    encoder = torch.randn(LAYOUT.num_entries, generator=torch.Generator().manual_seed(seed))
    results = []
    for order in (range(number), data.draw(st.permutations(range(number)))):
        aggregator = AGGREGATION_RULES[rule].make(
            layout=LAYOUT, encoder=encoder, control=torch.zeros(LAYOUT.num_entries), total_examples=10**6,
            trim_fraction=0.2,
        )  # fmt: skip
        for place in order:
            aggregator.add(*updates[place])
        results.append((aggregator.encoder(), aggregator.control()))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert all(bool(each.isfinite().all()) for each in results[0])
    nobody = torch.ones(LAYOUT.num_entries, dtype=torch.bool)
    for update, _ in updates:
        nobody &= spread_of(update, LAYOUT, LAYOUT.num_entries).isnan()
    assert torch.equal(results[0][0][nobody].view(torch.int32), encoder[nobody].view(torch.int32))


@pytest.mark.slow
@all_rules
@given(seed=st.integers(0, 2**32), attack=st.floats(-1e5, 1e5, width=32))
def test_two_of_ten_alike_cannot_take_the_average_farther_than_the_honest_are_apart(rule, seed, attack):
    draw = torch.Generator().manual_seed(seed)
    honest = torch.randn(8, LAYOUT.num_entries, generator=draw)
    points = [each.tolist() for each in (*honest, *torch.full((2, LAYOUT.num_entries), attack))]
    after = result_of(rule, points, layout=LAYOUT)
    among = torch.cdist(honest, honest).max()
    assert float((after - honest.mean(0)).norm()) <= float(among)


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", *RULES])
def test_c_follows_from_how_x_moves_and_not_from_what_x_is_guarded_against(rule):
    """Nine send -1 with a_i = 2, one a million: x moves by about -1, and c by half of the way to 1 / 2."""
    layout = interleaved_layout([(2, 1)])
    aggregator = AGGREGATION_RULES[rule].make(
        layout=layout, encoder=torch.zeros(2), control=torch.zeros(2), total_examples=10, damping=0.5, trim_fraction=0.2
    )
    for value in [-1.0] * 9 + [1e6]:
        aggregator.add(make_update(layout, [True, True], torch.full((2,), value), step_weight=2.0, corrected=True), 1)
    assert aggregator.encoder().tolist() == pytest.approx([-1.0, -1.0], abs=0.01)
    assert aggregator.control().tolist() == pytest.approx([0.25, 0.25], abs=0.01)


@given(seed=st.integers(0, 2**32), number=st.integers(1, 8), share=st.sampled_from([0.0, 0.1, 0.25, 0.5]))
def test_a_weighted_trimmed_mean_is_that_of_values_repeated_as_often_as_they_weigh(seed, number, share):
    """Each value twenty times its whole weight, sorted; the ends are cut off it, of a half all but the middle."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(number, 3, generator=draw, dtype=torch.float64)
    weights = torch.randint(1, 5, (number,), generator=draw)
    repeated = values.repeat_interleave(20 * weights, dim=0).sort(dim=0).values
    ends = min(round(share * len(repeated)), len(repeated) // 2 - 1)
    expected = repeated[ends : len(repeated) - ends].mean(dim=0)
    found = weighted_trimmed_mean(values, weights.double(), share)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
