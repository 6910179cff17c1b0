"""Uniform widths: which channels of which group in which round, worked out by hand."""

from itertools import pairwise

import pytest
import torch

from spatl.channels.costs import Budget, Costs
from spatl.channels.flops import FlopsModel
from spatl.channels.trace import EncoderTrace
from spatl.data import Examples
from spatl.selection.ordered import drawn_width, first_channels, rolling_window, uniform_share
from spatl.selection.protocol import SelectionRequest
from tests.support.layouts import interleaved_layout

LAYOUT = interleaved_layout([(4, 1), (6, 1)])
"""Channels 0 to 3, and 4 to 9, of one entry each."""


def costs() -> Costs:
    none = torch.zeros(0, dtype=torch.float64)
    flops = FlopsModel(none, none, none.view(0, 0), none.view(0, 0), none, none, none)
    return Costs(EncoderTrace(LAYOUT, flops, {}), lambda values, channels: 4 * values)


def chosen(selector, limit, *, server_round=1, seed=0):
    nothing = Examples(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))
    request = SelectionRequest(
        model=torch.nn.Identity(), weights=torch.zeros(10), update=torch.zeros(10), costs=costs(),
        budget=Budget("keep_ratio", limit), train=nothing, validation=nothing, num_steps=1, batch_size=1,
        server_round=server_round, generator=torch.Generator().manual_seed(seed), state={},
    )  # fmt: skip
    return selector(request)


def channels(choice):
    return choice.selection.mask.nonzero().squeeze(1).tolist()


def test_half_of_ten_entries_are_the_first_half_of_each_group():
    """HeteroFL at width 1/2: channels 0, 1 of four, and 0, 1, 2 of six (4, 5, 6 of all)."""
    assert channels(chosen(first_channels, 0.5)) == [0, 1, 4, 5, 6]


def test_a_narrow_network_lies_within_every_wider_one():
    widths = [set(channels(chosen(first_channels, limit))) for limit in (0.2, 0.3, 0.5, 0.8, 1.0)]
    assert all(narrow <= wide for narrow, wide in pairwise(widths))
    assert widths[-1] == set(range(10))


@pytest.mark.parametrize(
    ("server_round", "expected"),
    [
        (1, [0, 1, 4, 5, 6]),
        (2, [1, 2, 5, 6, 7]),
        (4, [0, 3, 7, 8, 9]),  # from 3 of four, around the end; from 3 of six
        (5, [0, 1, 4, 8, 9]),  # from 4 mod 4 = 0; from 4 of six: 4, 5 and 0
        (13, [0, 1, 4, 5, 6]),  # 12 is a multiple of both sizes
    ],
)
def test_a_window_rolls_by_one_channel_a_round_and_around_the_end(server_round, expected):
    """FedRolex, equation 2, with rounds from 0: from j mod K on, |window| = K / 2."""
    assert channels(chosen(rolling_window, 0.5, server_round=server_round)) == expected


def test_every_channel_has_its_turn_in_a_window():
    seen = set().union(*(channels(chosen(rolling_window, 0.2, server_round=number)) for number in range(1, 7)))
    assert seen == set(range(10))


@pytest.mark.slow
def test_drawn_widths_are_those_of_the_paper_below_what_the_budget_pays_for():
    """Of 10 entries 0.65 pays for at most 2 + 4 (a share in [5/8, 7/12) would be 3 + 3 or more): drawn from 0.2, 0.4
    and that, which are 1 + 1, 2 + 2 and the most, each the first channels of its group."""
    found = {tuple(channels(chosen(drawn_width, 0.65, seed=seed))) for seed in range(40)}
    most = tuple(channels(chosen(first_channels, 0.65)))
    assert found == {(0, 4), (0, 1, 4, 5), most}
    assert {chosen(drawn_width, 0.65, seed=seed).spends for seed in range(40)} == {0.2, 0.4, len(most) / 10}


def test_the_largest_share_costs_no_more_than_the_budget_and_a_little_more_would():
    share = uniform_share(costs(), Budget("keep_ratio", 0.5))
    assert share == pytest.approx(0.5833, abs=1e-3)  # from 3.5 of six on, four are kept
