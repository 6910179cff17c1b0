"""Who is let in: updates of sizes that fit what was folded in before, of clients that do not keep failing."""

import dataclasses
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from spatl.channels.selection import Selection, select_all
from spatl.errors import SpatlError, UpdateRejected
from spatl.rounds.admission import (
    Admission,
    Size,
    UpdateTooLarge,
    Usual,
    check_size,
    check_trust,
    clip_update,
    low_of,
    median_of,
    size_of,
)
from spatl.wire.update import Update
from tests.support.layouts import interleaved_layout

LAYOUT = interleaved_layout([(1, 2), (3, 1)], statistics=4)


def after(admission, server_round, *, folded=(), refused=()):
    sizes = {client: Size(size, size) for client, size in folded}
    return admission.after(server_round, folded=sizes, refused=refused, max_failures=2, rounds_away=3)


def update(values, selection=None, step_weight=1.0):
    return Update(1, 0, selection or select_all(LAYOUT), values, step_weight)


@given(scale=st.floats(1e-3, 1e3), mask=st.lists(st.booleans(), min_size=4, max_size=4).filter(any))
def test_the_size_of_an_update_does_not_depend_on_how_much_of_it_is_sent(scale, mask):
    """All parameters alike, so that any share of them has the same root mean square; statistics do not count."""
    selection = Selection(torch.tensor(mask))
    entries = selection.entries(LAYOUT)
    values = torch.where(entries < LAYOUT.num_parameter_entries, -scale, 1e9).float()
    size = size_of(update(values, selection, step_weight=0.5), LAYOUT)
    assert size.rms == pytest.approx(scale, rel=1e-6)
    assert size.rate == pytest.approx(2 * scale, rel=1e-6)


def test_nothing_is_of_size_zero():
    nothing = Selection(torch.zeros(LAYOUT.num_channels, dtype=torch.bool))
    assert size_of(update(torch.zeros(0), nothing), LAYOUT) == Size(0.0, 0.0)


def test_the_clip_is_by_the_largest_median_of_the_last_five_rounds_and_the_bound_by_the_largest_low_of_all():
    """Of sizes 4, 5, 90 the median is 5 and the least 4. Then all send 1, and the 5 is six rounds old at last.

    A round in which nothing was folded in changes nothing.
    """
    admission = Admission()
    assert admission.recent is admission.largest is None
    admission = after(admission, 1, folded=[(0, 4.0), (1, 5.0), (2, 90.0)])
    assert (admission.recent, admission.largest) == (Size(5.0, 5.0), Size(4.0, 4.0))
    for server_round, folded in enumerate([3, 3, 3, 0, 3], start=2):
        admission = after(admission, server_round, folded=[(client, 1.0) for client in range(folded)])
    assert admission.recent == Size(5.0, 5.0)
    admission = after(admission, 7, folded=[(0, 2.0)])
    assert (admission.recent, admission.largest) == (Size(1.0, 1.0), Size(4.0, 4.0))


@pytest.mark.slow
@given(bad=st.floats(1e-3, 1e6), rounds=st.integers(1, 20), draws=st.randoms(use_true_random=False))
def test_two_of_ten_cannot_make_large_what_is_usual_however_often_they_are_drawn(bad, rounds, draws):
    """Honest clients send 1 to 2. Whoever is drawn, what is usual is what an honest client sends, or less."""
    admission = Admission()
    for server_round in range(1, rounds + 1):
        chosen = draws.sample(range(10), 4)
        admission = after(admission, server_round, folded=[(c, bad if c < 2 else 1 + c / 10) for c in chosen])
        assert admission.largest.rms <= 1.9
        if len(admission.by_client) >= 5:
            assert admission.sizes[-1].rms <= 1.9


@given(sizes=st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=20))
def test_what_is_usual_grows_by_half_in_a_round_at_most(sizes):
    """Even where all clients send so much more."""
    admission = after(Admission(), 1, folded=[(0, 1.0), (1, 1.0)])
    for server_round, size in enumerate(sizes, start=2):
        before = admission
        admission = after(admission, server_round, folded=[(0, size), (1, size)])
        assert admission.largest.rms <= 1.5 * before.largest.rms
        assert admission.recent.rms <= 1.5 * before.recent.rms


def test_of_two_updates_the_smaller_says_what_is_usual_and_of_ten_the_third():
    two = [Size(1.0, 20.0), Size(1000.0, 2.0)]
    assert median_of(two) == low_of(two) == Size(1.0, 2.0)
    ten = [Size(float(number), 10.0 * number) for number in range(10, 0, -1)]
    assert (low_of(ten), median_of(ten)) == (Size(3.0, 30.0), Size(5.0, 50.0))


@given(
    weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30),
    reach=st.floats(1e-2, 1e2),
    gradient=st.floats(1e-6, 1e3),
)
def test_no_client_that_only_trains_longer_or_shorter_than_others_is_larger_than_usual(weights, reach, gradient):
    """All go the same way, ever slower the longer they train; one may take a million times the steps of another."""
    sizes = [Size(d := gradient * reach * -math.expm1(-weight / reach), d / weight) for weight in weights]
    usual = median_of(sizes)
    assert max(size.times(usual) for size in sizes) <= 1 + 1e-9


@given(weights=st.lists(st.floats(1e-2, 1e2), min_size=2, max_size=30), data=st.data())
def test_a_thousandfold_update_is_refused_whoever_of_clients_whose_sizes_differ_a_hundredfold_sends_it(weights, data):
    """Where distances grow with the steps, and in the first round, of which it is itself a part."""
    assume(max(weights) <= 100 * min(weights))
    sizes = [Size(weight**0.5, weight**-0.5) for weight in weights]
    bad = data.draw(st.integers(0, len(weights) - 1))
    sizes[bad] = Size(1000 * sizes[bad].rms, 1000 * sizes[bad].rate)
    with pytest.raises(UpdateTooLarge, match=r"server\.norm_bound allows 10"):
        check_size(sizes[bad], low_of(sizes), 10.0)


def test_what_is_larger_than_the_bound_as_a_whole_and_for_its_steps_is_refused_and_so_is_what_is_no_number():
    usual = Size(1.5, 3.0)
    for fine in (Size(3.0, 90.0), Size(90.0, 6.0)):
        check_size(fine, usual, 2.0)
    check_size(Size(1e30, 1e30), None, 2.0)
    check_size(Size(1e30, 1e30), usual, None)
    check_size(Size(0.0, 0.0), Size(0.0, 0.0), 2.0)
    for large in (Size(3.1, 6.2), Size(math.nan, math.nan), Size(math.inf, math.inf)):
        with pytest.raises(UpdateTooLarge, match=r"times the usual for its steps; server\.norm_bound allows 2"):
            check_size(large, usual, 2.0)
    assert issubclass(UpdateTooLarge, SpatlError)


def test_where_all_updates_are_tiny_one_that_is_not_is_measured_by_the_encoder():
    """The median is next to nothing, and the encoder's weights are of 0.2."""
    tiny, large = Size(1e-6, 2e-6), Size(1.0, 2.0)
    usual = Usual.of(tiny, tiny, encoder_rms=0.2)
    check_size(Size(0.19, 0.38), usual.bounded, 10.0)  # less than the encoder itself
    with pytest.raises(UpdateTooLarge):
        check_size(Size(0.21, 0.42), usual.bounded, 10.0)
    assert Size(0.003, 0.006).times(usual.clipped) == pytest.approx(1.5)
    assert Usual.of(large, large, encoder_rms=0.2) == Usual(large, large)


def test_a_client_that_fails_twice_is_left_out_for_three_rounds_and_then_has_one_attempt_at_a_time():
    """Refused in rounds 1 and 2: out of 3 to 5. Refused in 6: out of 7 to 9. Folded in in 10: all is forgotten."""
    admission = after(Admission(), 1, folded=[(0, 1.0)], refused=[7])
    assert admission.admitted([0, 7], 2) == [0, 7]
    admission = after(admission, 2, folded=[(0, 1.0)], refused=[7])
    for server_round in (3, 4, 5):
        assert admission.admitted([0, 7], server_round) == [0]
        admission = after(admission, server_round, folded=[(0, 1.0)])
    assert admission.admitted([0, 7], 6) == [0, 7]
    admission = after(admission, 6, refused=[7])
    assert [admission.admitted([0, 7], server_round) for server_round in (7, 9, 10)] == [[0], [0], [0, 7]]
    admission = after(admission, 10, folded=[(7, 1.0)])
    assert admission.failures == {}
    admission = after(admission, 11, refused=[7])
    assert admission.admitted([0, 7], 12) == [0, 7]


def test_a_round_is_never_without_clients():
    admission = Admission(away={0: 9, 1: 9})
    assert admission.admitted([0, 1], 5) == [0, 1]


AGREEING = dict.fromkeys(range(3), 0.3)


@given(past=st.lists(st.floats(-1, 1), max_size=20), rounds=st.integers(1, 5))
def test_whatever_went_before_a_round_of_working_against_the_others_costs_a_client_its_trust(past, rounds):
    admission = Admission()
    for agreement in past:
        admission = admission.judged({**AGREEING, 7: agreement})
        assert admission.trust[7] <= 0.5
    for _ in range(rounds):
        admission = admission.judged({**AGREEING, 7: -0.6})
    assert not admission.trusts(7)
    assert admission.trusts(8)
    assert all(admission.trusts(client) for client in AGREEING)
    lost = admission.trust[7]
    assert admission.judged({8: 1.0}).trust[7] == lost  # a round without it changes nothing
    assert admission.judged({7: 0.4}).trust[7] == pytest.approx(lost + 0.1)


@given(rounds=st.integers(1, 8), draws=st.randoms(use_true_random=False))
def test_nobody_loses_trust_where_clients_do_not_agree_and_for_five_rounds_after_it(rounds, draws):
    """Ten of one class each: four of them point against the others. Then all but one agree."""
    admission = Admission()
    for _ in range(rounds):
        admission = admission.judged({c: draws.uniform(-1, -0.01) if c < 4 else 0.2 for c in range(10)})
    for _ in range(4):
        admission = admission.judged({c: -0.5 if c == 0 else 0.2 for c in range(10)})
    assert all(admission.trusts(client) for client in range(10))
    admission = admission.judged({c: -0.6 if c == 0 else 0.2 for c in range(10)})
    assert [client for client in range(10) if not admission.trusts(client)] == [0]


def test_the_update_of_a_client_without_trust_is_refused_with_what_it_lacks():
    check_trust(0.0)
    with pytest.raises(UpdateRejected, match=r"its trust is -0\.25, and server\.aggregation: agreement lets in"):
        check_trust(-0.25)


def test_a_clipped_update_is_as_large_as_the_bound_and_no_longer_counts_as_corrected():
    given = dataclasses.replace(update(torch.full((LAYOUT.num_entries,), 8.0)), corrected=True)
    size, usual = size_of(given, LAYOUT), Size(2.0, 2.0)
    assert clip_update(given, size, usual, 4.0) is given
    assert clip_update(given, size, Size(2.0, 8.0), 1.0) is given  # as large as its steps make it
    clipped = clip_update(given, size, usual, 1.0)
    assert clipped.values.tolist() == [2.0] * LAYOUT.num_entries
    assert not clipped.corrected
