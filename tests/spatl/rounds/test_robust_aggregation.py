"""Laws of the rules that hold against a bad client: medians, trimmed means, and agreement with the others."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.rounds.few_senders import restrain_few_
from spatl.rounds.robust import agreements
from spatl.rounds.rules import AGGREGATION_RULES
from tests.support.layouts import interleaved_layout, make_update
from tests.support.updates import LAYOUT, random_updates


def robust(updates, rule, trim_fraction=0.2, encoder=None, **options):
    aggregator = AGGREGATION_RULES[rule].make(
        layout=LAYOUT, encoder=torch.zeros(LAYOUT.num_entries) if encoder is None else encoder, control=None,
        total_examples=10**6, trim_fraction=trim_fraction, **options,
    )  # fmt: skip
    for update, examples in updates:
        aggregator.add(update, examples)
    return aggregator.encoder()


both_rules = pytest.mark.parametrize("rule", ["median", "trimmed-mean"])


@pytest.mark.slow
@both_rules
@given(seed=st.integers(0, 2**32), number=st.integers(0, 8), trim_fraction=st.sampled_from([0.0, 0.1, 0.2, 0.4]))
def test_robust_rules_are_those_of_numpy_over_the_clients_that_sent_an_entry(rule, seed, number, trim_fraction):
    updates = random_updates(seed, number)
    encoder = torch.randn(LAYOUT.num_entries, generator=torch.Generator().manual_seed(seed))
    result = robust(updates, rule, trim_fraction, encoder)
    assert torch.equal(result, robust(updates[::-1], rule, trim_fraction, encoder))
    sent: dict[int, list[float]] = {}
    for update, _ in updates:
        for entry, value in zip(update.selection.entries(LAYOUT).tolist(), update.values.tolist(), strict=True):
            sent.setdefault(entry, []).append(value)
    moved = torch.zeros(LAYOUT.num_entries)
    for entry, values in sent.items():
        trimmed = min(math.ceil(round(trim_fraction * len(values), 9)), (len(values) - 1) // 2)
        kept = sorted(values)[trimmed : len(values) - trimmed]
        moved[entry] = float(np.median(values) if rule == "median" else np.mean(kept))
    senders = (
        torch.stack([update.selection.mask for update, _ in updates]).sum(0) if updates else LAYOUT.parameter_sizes
    )
    restrain_few_(moved, torch.zeros_like(moved), senders, number, LAYOUT, most=1.0)
    assert torch.allclose(result, encoder + moved, rtol=1e-5, atol=1e-5)
    nobody = torch.tensor([entry not in sent for entry in range(LAYOUT.num_entries)])
    assert torch.equal(result[nobody].view(torch.int32), encoder[nobody].view(torch.int32))


@pytest.mark.slow
@both_rules
@given(seed=st.integers(0, 2**32), attack=st.floats(-1e6, 1e6, width=32))
def test_one_client_of_three_or_more_cannot_leave_the_range_of_the_others(rule, seed, attack):
    everything = [True] * LAYOUT.num_channels
    draw = torch.Generator().manual_seed(seed)
    honest = [torch.randn(LAYOUT.num_entries, generator=draw) for _ in range(4)]
    bad = torch.full((LAYOUT.num_entries,), attack)
    result = robust([(make_update(LAYOUT, everything, each), 1) for each in (*honest, bad)], rule)
    stacked = torch.stack(honest)
    assert bool((result >= stacked.amin(0) - 1e-6).all())
    assert bool((result <= stacked.amax(0) + 1e-6).all())


def test_robust_rules_count_each_client_alike_and_scale_as_the_mean_does():
    """1, 2, 30 with 1000 examples: median 2, twice as far with a learning rate of 2; without the ends, 2 as well."""
    everything = [True] * LAYOUT.num_channels
    updates = [
        (make_update(LAYOUT, everything, torch.full((LAYOUT.num_entries,), value)), examples)
        for value, examples in ((1.0, 1), (2.0, 1), (30.0, 1000))
    ]
    assert robust(updates, "median").tolist() == [2.0] * LAYOUT.num_entries
    assert robust(updates, "trimmed-mean", 0.1).tolist() == [2.0] * LAYOUT.num_entries
    assert robust(updates, "trimmed-mean", 0.0).tolist() == pytest.approx([11.0] * LAYOUT.num_entries)
    assert robust(updates, "median", learning_rate=2.0)[0] == 4.0


def in_numpy(updates, trusted):
    """`agreements`, entry by entry."""
    length = LAYOUT.num_parameter_entries
    rows = []
    for update in updates:
        row = np.full(LAYOUT.num_entries, np.nan)
        row[update.selection.entries(LAYOUT).numpy()] = update.values.numpy()
        rows.append(row[:length])
    counted = [counts or not any(trusted) for counts in trusted]
    cosines = []
    for judged, row in enumerate(rows):
        others = [each for one, each in enumerate(rows) if counted[one] and one != judged]
        enough = min(max(2, math.ceil(len(others) / 4)), max(1, sum(counted) - 1))
        sent = [[each[entry] for each in others if not np.isnan(each[entry])] for entry in range(length)]
        entries = [e for e in range(length) if not np.isnan(row[e]) and len(sent[e]) >= enough]
        values, median = row[entries], np.array([np.median(sent[entry]) for entry in entries])
        norm = np.linalg.norm(values) * np.linalg.norm(median)
        cosines.append(values @ median / norm if norm else 0.0)
    return cosines


@pytest.mark.slow
@given(seed=st.integers(0, 2**32), number=st.integers(0, 7), data=st.data())
def test_agreements_are_cosines_with_the_median_of_the_trusted_in_any_order(seed, number, data):
    updates = [update for update, _ in random_updates(seed, number)]
    trusted = data.draw(st.lists(st.booleans(), min_size=number, max_size=number))
    result = agreements(updates, trusted, LAYOUT)
    order = data.draw(st.permutations(range(number)))
    assert [result[i] for i in order] == agreements([updates[i] for i in order], [trusted[i] for i in order], LAYOUT)
    if number < 2:
        assert result == [0.0] * number
    else:
        assert result == pytest.approx(in_numpy(updates, trusted), abs=1e-12)
    assert all(-1 <= each <= 1 for each in result)


@pytest.mark.slow
@given(seed=st.integers(0, 2**32), factor=st.floats(1e-3, 1e3))
def test_an_update_agrees_as_much_as_its_negative_disagrees_whatever_its_size(seed, factor):
    """It is judged by the others alone, whether it is trusted or not."""
    updates = [update for update, _ in random_updates(seed, 5)]
    negative = replace(updates[4], values=-factor * updates[4].values)
    for trusted in (True, False):
        one, other = (
            agreements([*updates[:4], last], [True] * 4 + [trusted], LAYOUT) for last in (updates[4], negative)
        )
        assert one[4] == pytest.approx(-other[4], abs=1e-6)


def test_a_channel_that_only_the_judged_and_one_more_send_covers_nothing():
    """Six clients; two flip what all send, and both send a channel of their own, a thousand times as large."""
    layout = interleaved_layout([(2, 3)])
    common = torch.where(layout.owner == 0, 1.0, 1000.0)
    honest = [make_update(layout, [True, False], common) for _ in range(4)]
    bad = [make_update(layout, [True, True], torch.where(layout.owner == 0, -1.0, 1000.0)) for _ in range(2)]
    assert agreements([*honest, *bad], [True] * 6, layout) == pytest.approx([1.0] * 4 + [-1.0] * 2)


def test_statistics_do_not_agree_or_disagree():
    layout = interleaved_layout([(1, 1)], statistics=1)
    updates = [make_update(layout, [True], torch.tensor([1.0, statistic])) for statistic in (5.0, -5.0, 5.0)]
    assert agreements(updates, [True] * 3, layout) == pytest.approx([1.0] * 3)


@pytest.mark.parametrize(("fraction", "senders", "trimmed"), [(0.15, 100, 15), (0.1, 30, 3), (0.2, 9, 2), (0.0, 9, 0)])
def test_a_share_of_senders_is_not_rounded_up_for_the_rounding_of_a_product(fraction, senders, trimmed):
    """0.15 x 100 is 15.000001 to a float32. Each client i sends i**2 everywhere."""
    squares = [float(number**2) for number in range(senders)]
    updates = [
        (make_update(LAYOUT, [True] * LAYOUT.num_channels, torch.full((LAYOUT.num_entries,), square)), 1)
        for square in squares
    ]
    kept = squares[trimmed : senders - trimmed]
    result = robust(updates, "trimmed-mean", fraction, torch.zeros(LAYOUT.num_entries))
    assert result.tolist() == pytest.approx([sum(kept) / len(kept)] * LAYOUT.num_entries, rel=1e-6)
