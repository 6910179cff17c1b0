"""Statistics that travel with updates: refused where they are impossible, cut where one channel is, else as sent."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.channels.layout import ChannelGroup, EncoderLayout, Labels
from spatl.errors import UpdateRejected
from spatl.rounds.shared_statistics import FARTHEST_MEAN, LARGEST_VARIANCE, StatisticsBounds
from tests.support.layouts import make_update

SIZE = 6
_OWN = Labels(torch.arange(SIZE))
LAYOUT = EncoderLayout(
    {name: torch.Size([SIZE]) for name in ("norm.weight", "norm.running_mean", "norm.running_var")},
    SIZE, (_OWN, _OWN, _OWN), (ChannelGroup("norm", 0, SIZE, 3),),
)  # fmt: skip
BEFORE = torch.cat([torch.ones(SIZE), torch.zeros(SIZE), torch.ones(SIZE)])
ALL = [True] * SIZE


def sent(means, variances, mask=ALL):
    """An update whose parameters do not move, and whose statistics come to these."""
    own = torch.cat([torch.ones(SIZE), torch.full((SIZE,), means), torch.full((SIZE,), variances)])
    return make_update(LAYOUT, mask, own - BEFORE)


def bounds(updates, *, exact=True):
    return StatisticsBounds.of(enumerate(updates), BEFORE, LAYOUT, exact=exact)


@given(
    means=st.lists(st.floats(-2, 2), min_size=1, max_size=6),
    variances=st.lists(st.floats(0.2, 3), min_size=6, max_size=6),
)
def test_what_clients_of_alike_data_send_is_used_as_it_is(means, variances):
    updates = [sent(mean, variance) for mean, variance in zip(means, variances, strict=False)]
    found = bounds(updates)
    assert all(found.bounded(client, update, LAYOUT) is update for client, update in enumerate(updates))


@pytest.mark.parametrize("bad", [sent(1e6, 1.0), sent(0.0, 1e15), sent(1e12, 1e15), sent(0.0, -5.0)])
@pytest.mark.parametrize("number", [1, 2, 3, 9])
def test_one_message_is_refused_and_the_others_are_not_blamed(bad, number):
    """However few they are: with one other client, what the server has tells which of them is off."""
    updates = [*(sent(0.3, 1.5) for _ in range(number)), bad]
    found = bounds(updates)
    for client in range(number):
        assert found.bounded(client, updates[client], LAYOUT) is updates[client]
    with pytest.raises(UpdateRejected, match=r"BatchNorm statistics are|no variance is below 0"):
        found.bounded(number, bad, LAYOUT)


def test_one_channel_that_is_off_is_cut_to_what_is_possible():
    """The others say 0 and 1; channel 2 has a mean of 30, channel 4 a variance of 400."""
    given = sent(0.0, 1.0).values.clone()
    given[SIZE + 2], given[2 * SIZE + 4] = 30.0, 399.0
    bad = dataclasses.replace(sent(0.0, 1.0), values=given)
    found = bounds([*(sent(0.0, 1.0) for _ in range(5)), bad]).bounded(5, bad, LAYOUT)
    after = BEFORE + found.values
    assert float(after[SIZE + 2]) == pytest.approx(FARTHEST_MEAN, rel=1e-4)
    assert float(after[2 * SIZE + 4]) == pytest.approx(LARGEST_VARIANCE, rel=1e-4)
    same = torch.ones(3 * SIZE, dtype=torch.bool)
    same[[SIZE + 2, 2 * SIZE + 4]] = False
    assert torch.equal(found.values[same], given[same])


def test_what_a_client_does_not_send_is_not_judged_and_what_few_send_is_judged_by_what_the_server_has():
    """Two bad ones alone send the last channel; each would be excused by the other."""
    own = [False] * (SIZE - 1) + [True]
    rest = [not each for each in own]
    updates = [*(sent(0.3, 1.5, rest) for _ in range(4)), sent(1e4, 1.0, own), sent(1e4, 1.0, own)]
    found = bounds(updates)
    assert all(found.bounded(client, updates[client], LAYOUT) is updates[client] for client in range(4))
    for client in (4, 5):
        with pytest.raises(UpdateRejected, match="standard deviations"):
            found.bounded(client, updates[client], LAYOUT)


def test_a_lossy_codec_may_take_a_variance_below_zero_and_float32_may_not():
    updates = [sent(0.0, 1.0), sent(0.0, 1.0), sent(0.0, -0.01)]
    assert bounds(updates, exact=False).bounded(2, updates[2], LAYOUT).values.isfinite().all()
    with pytest.raises(UpdateRejected, match=r"a running variance would be -0\.01; no variance is below 0"):
        bounds(updates).bounded(2, updates[2], LAYOUT)
