"""Channels that few clients sent move at most so much further than usual."""

import pytest
import torch

from spatl.rounds.few_senders import restrain_few_
from spatl.rounds.rules import AGGREGATION_RULES
from tests.support.layouts import interleaved_layout, make_update

LAYOUT = interleaved_layout([(4, 2), (2, 3)])


def moved(lengths):
    """An encoder whose channels moved so far, each entry alike, from where it is 1."""
    return 1 + torch.tensor(lengths)[LAYOUT.owner]


def test_a_channel_of_few_is_measured_by_the_median_of_those_of_many_in_its_group():
    """Ten clients. Channel 3 was sent by four and moved 9, the others of its group 1, 2 and 3: it may move 2 times 2.

    Channel 5 was sent by one, and channel 4, alone in its group with many senders, moved 7: it may move 14.
    """
    senders = torch.tensor([10, 10, 5, 4, 10, 1])
    before = torch.ones(LAYOUT.num_entries)
    after = restrain_few_(moved([1.0, -2.0, 3.0, 9.0, 7.0, 100.0]), before, senders, 10, LAYOUT, most=2.0)
    assert torch.allclose(after, moved([1.0, -2.0, 3.0, 4.0, 7.0, 14.0]))


def test_a_group_that_only_few_sent_is_measured_by_all_others():
    senders = torch.tensor([10, 10, 10, 10, 1, 0])
    after = restrain_few_(
        moved([1.0, 2.0, 3.0, 4.0, 50.0, 0.0]), torch.ones(LAYOUT.num_entries), senders, 10, LAYOUT, most=1.0
    )
    assert torch.allclose(after, moved([1.0, 2.0, 3.0, 4.0, 2.0, 0.0]))


@pytest.mark.parametrize("senders", [[3, 3, 3, 3, 3, 2], [10, 10, 10, 10, 10, 5]])
def test_what_enough_sent_keeps_its_bits(senders):
    after = moved([0.1, 0.2, 0.3, 0.4, 0.5, 100.0])
    given = after.clone()
    restrain_few_(after, torch.ones(LAYOUT.num_entries), torch.tensor(senders), max(senders), LAYOUT, most=1.0)
    assert torch.equal(after, given)


@pytest.mark.parametrize(("rule", "most"), [("mean", 5.0), *((rule, 1.0) for rule in list(AGGREGATION_RULES)[2:])])
def test_no_rule_lets_two_of_ten_own_the_channel_that_only_they_send(rule, most):
    """Eight send 1 on all channels but the last; two send that alone, and a thousand."""
    aggregator = AGGREGATION_RULES[rule].make(
        layout=LAYOUT, encoder=torch.zeros(LAYOUT.num_entries), control=None, total_examples=100, trim_fraction=0.2
    )
    for client in range(10):
        bad = client < 2
        mask = [not bad] * 5 + [bad]
        aggregator.add(make_update(LAYOUT, mask, torch.full((LAYOUT.num_entries,), 1000.0 if bad else 1.0)), 10)
    after = aggregator.encoder()
    assert torch.allclose(after[LAYOUT.owner < 5], torch.tensor(1.0))
    assert float(after[LAYOUT.owner == 5].abs().max()) <= most * 1.0001
