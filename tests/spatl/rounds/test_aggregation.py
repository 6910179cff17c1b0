"""Laws of the index-based average and of the control variate that goes with it."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from hypothesis import given, settings
from hypothesis import strategies as st

from spatl.channels.kept import Kept
from spatl.channels.selection import Selection, select_all
from spatl.errors import UpdateRejected
from spatl.rounds import aggregation
from spatl.rounds.aggregation import Aggregator
from spatl.rounds.control import refresh_control
from spatl.rounds.exact_sum import ExactSum, Terms
from spatl.wire.update import Update
from tests.support.layouts import interleaved_layout, make_update
from tests.support.updates import LAYOUT, N, random_updates


def aggregate(updates, encoder, control, **options):
    aggregator = Aggregator(LAYOUT, encoder, control, total_examples=10_000, **options)
    for update, num_examples in updates:
        aggregator.add(update, num_examples)
    return aggregator.encoder(), aggregator.control()


@pytest.mark.slow
@given(seed=st.integers(0, 2**32), number=st.integers(0, 8), normalizes=st.booleans(), data=st.data())
def test_the_result_does_not_depend_on_the_order_of_replies(seed, number, normalizes, data):
    updates = random_updates(seed, number)
    shuffled = data.draw(st.permutations(updates))
    encoder, control = torch.randn(N), torch.randn(LAYOUT.num_parameter_entries)
    one = aggregate(updates, encoder, control, normalizes=normalizes, damping=0.5)
    other = aggregate(shuffled, encoder, control, normalizes=normalizes, damping=0.5)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("normalizes", [False, True])
@pytest.mark.parametrize("kept", [0, 3, 1000])
def test_updates_that_wait_are_summed_to_the_same_bits(kept, normalizes, monkeypatch):
    """A few are kept until the round closes, more are added up as they come."""
    updates = random_updates(3, 6)
    encoder, control = torch.randn(N), torch.randn(LAYOUT.num_parameter_entries)
    one = aggregate(updates, encoder, control, normalizes=normalizes, damping=0.5)
    monkeypatch.setattr(aggregation, "WAITING_BYTES", kept)
    other = aggregate(updates, encoder, control, normalizes=normalizes, damping=0.5)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def whole_updates(number):
    """Updates that send everything, in float32: two take as much as is kept until the round closes, three more."""
    draw = torch.Generator().manual_seed(number)
    everything = [True] * LAYOUT.num_channels
    return [
        (make_update(LAYOUT, everything, torch.randn(N, generator=draw), step_weight=0.5, corrected=True), 7 * i + 1)
        for i in range(number)
    ]


@pytest.mark.parametrize("number", [1, 2, 3, 8])
@pytest.mark.parametrize("updates_of", [whole_updates, lambda number: random_updates(3, number)])
def test_the_average_is_that_of_one_exact_sum_whether_updates_wait_or_not(updates_of, number):
    """x_j + sum_i n_i D_ij / sum_i n_i, and c_j + sum_i n_i (-D_ij / a_i - c_j) / n, by one exact sum of each."""
    updates, total_examples = updates_of(number), 10_000
    draw = torch.Generator().manual_seed(0)
    encoder, control = torch.randn(N, generator=draw), torch.randn(LAYOUT.num_parameter_entries, generator=draw)
    moved, gradients = ExactSum(N), ExactSum(len(control))
    examples = torch.zeros(N, dtype=torch.int64)
    for update, num_examples in updates:
        entries, values = update.selection.entries(LAYOUT), update.values.double()
        own = entries < len(control)
        sent = torch.zeros(N, dtype=torch.bool).index_fill_(0, entries, True)
        moved.add_(Kept.of_bits(sent), Terms(values * num_examples))
        gradients.add_(Kept.of_bits(sent[: len(control)]), Terms(-values[own] / update.step_weight * num_examples))
        examples[entries] += num_examples
    mean = (encoder.double() + moved.total() / examples.clamp(min=1)).float()
    own = examples[: len(control)]
    step = (gradients.total() - control.double() * own) / total_examples
    found, found_control = aggregate(updates, encoder, control)
    assert torch.equal(found, torch.where(examples > 0, mean, encoder))
    assert torch.equal(found_control, torch.where(own > 0, (control.double() + step).float(), control))


@pytest.mark.parametrize("number", [0, 1, 2, 3, 8])
def test_a_rejected_update_leaves_nothing_however_many_wait(number):
    updates = whole_updates(number + 1)
    encoder, control = torch.randn(N), torch.randn(LAYOUT.num_parameter_entries)
    aggregator = Aggregator(LAYOUT, encoder, control, total_examples=10_000)
    for update, num_examples in updates[:-1]:
        aggregator.add(update, num_examples)
    rejected, num_examples = updates[-1]
    values = rejected.values.clone()
    values[-1] = 1e13
    with pytest.raises(UpdateRejected):
        aggregator.add(replace(rejected, values=values), num_examples)
    assert aggregator.num_updates == number
    expected = aggregate(updates[:-1], encoder, control)
    assert all(map(torch.equal, (aggregator.encoder(), aggregator.control()), expected))
    aggregator.add(rejected, num_examples)  # as it should have come
    expected = aggregate(updates, encoder, control)
    assert all(map(torch.equal, (aggregator.encoder(), aggregator.control()), expected))


@given(terms=st.lists(st.floats(-1e9, 1e9, width=32), max_size=30))
def test_a_fixed_point_sum_is_the_exact_sum_to_float64_rounding(terms):
    total = ExactSum(1)
    for term in terms:
        total.add_(None, Terms(torch.tensor([term], dtype=torch.float64)))
    exact = sum((Fraction(term) for term in terms), Fraction(0))
    assert (
        abs(Fraction(float(total.total()[0])) - exact)
        <= abs(exact) * Fraction(2) ** -52 + len(terms) * Fraction(2) ** -58
    )


@pytest.mark.slow
def test_carrying_changes_no_sum():
    """5,000 terms of 1/3 (rounded to multiples of 2**-58 each) cross the carry after 4,096."""
    total = ExactSum(2)
    third = torch.tensor([1 / 3, -1 / 3], dtype=torch.float64)
    for _ in range(5000):
        total.add_(None, Terms(third))
    expected = float(Fraction(round(Fraction(1 / 3) * 2**58), 2**58) * 5000)
    assert total.total().tolist() == pytest.approx([expected, -expected], rel=1e-15)


@pytest.mark.slow
@given(seed=st.integers(0, 2**32), number=st.integers(1, 8))
def test_entries_nobody_sent_keep_their_bits(seed, number):
    updates = random_updates(seed, number)
    encoder = torch.randn(N)
    encoder[::7] = -0.0
    control = torch.randn(LAYOUT.num_parameter_entries)
    after, control_after = aggregate(updates, encoder, control)
    sent = torch.zeros(LAYOUT.num_channels, dtype=torch.bool)
    for update, _ in updates:
        sent |= update.selection.mask
    quiet = ~sent[LAYOUT.owner]
    assert torch.equal(after[quiet].view(torch.int32), encoder[quiet].view(torch.int32))
    assert torch.equal(control_after[quiet].view(torch.int32), control[quiet].view(torch.int32))


@pytest.mark.slow
@given(seed=st.integers(0, 2**32), number=st.integers(1, 8))
def test_the_average_lies_between_the_clients_that_sent_the_entry(seed, number):
    """Of a channel that at most two in five sent, between them and where it was, which is 0."""
    updates = random_updates(seed, number)
    moved, _ = aggregate(updates, torch.zeros(N), None)
    dense = torch.full((number, N), float("nan"))
    for row, (update, _) in enumerate(updates):
        dense[row, update.selection.entries(LAYOUT)] = update.values
    sent = ~dense.isnan().all(0)
    few = ((~dense.isnan()).sum(0) <= 0.4 * number)[sent]
    low = torch.where(dense.isnan(), torch.inf, dense).amin(0)[sent]
    high = torch.where(dense.isnan(), -torch.inf, dense).amax(0)[sent]
    low, high = torch.where(few, low.clamp(max=0), low), torch.where(few, high.clamp(min=0), high)
    assert bool(((moved[sent] >= low) & (moved[sent] <= high)).all())


def test_two_clients_by_hand():
    """Entry 0 is sent by both: 1 + (30 * 2 + 10 * -2) / 40 = 2; entry 1 by the second: 1 + 4 = 5; entry 2 by none.

    c of entry 0: p = 30/100 and 10/100, a = 2 and 4: 0.5 * (0.3 * (-2/2 - 0.1) + 0.1 * (2/4 - 0.1)) added to 0.1
    is 0.1 + 0.5 * (-0.33 + 0.04) = -0.045; of entry 1: 0.1 + 0.5 * 0.1 * (-4/4 - 0.1) = 0.045.
    """
    layout = interleaved_layout([(3, 1)])
    aggregator = Aggregator(layout, torch.ones(3), torch.full((3,), 0.1), total_examples=100, damping=0.5)
    one = make_update(layout, [True, False, False], torch.tensor([2.0, 9, 9]), step_weight=2.0, corrected=True)
    other = make_update(layout, [True, True, False], torch.tensor([-2.0, 4, 9]), step_weight=4.0, corrected=True)
    aggregator.add(one, 30)
    aggregator.add(other, 10)
    assert aggregator.encoder().tolist() == [2.0, 5.0, 1.0]
    assert aggregator.control().tolist() == pytest.approx([-0.045, 0.045, 0.1])
    assert aggregator.control_share() == pytest.approx((0.4 + 0.1 + 0.0) / 3)


def test_an_update_whose_gradients_were_not_corrected_moves_x_and_not_c():
    layout = interleaved_layout([(2, 1)])
    aggregator = Aggregator(layout, torch.zeros(2), torch.full((2,), 0.1), total_examples=10)
    aggregator.add(make_update(layout, [True, True], torch.tensor([2.0, 4.0]), corrected=False), 10)
    assert aggregator.encoder().tolist() == [2.0, 4.0]
    assert aggregator.control().tolist() == pytest.approx([0.1, 0.1])
    assert aggregator.control_share() == 0


def test_c_moves_by_what_the_clients_hold_for_c():
    """The clients hold c = 0.5 where it is 0.1: 0.1 + 0.5 * 0.4 * (-2/2 - 0.5) = -0.2."""
    layout = interleaved_layout([(1, 1)])
    aggregator = Aggregator(
        layout, torch.zeros(1), torch.tensor([0.1]), held_control=torch.tensor([0.5]), total_examples=100, damping=0.5
    )
    aggregator.add(make_update(layout, [True], torch.tensor([2.0]), step_weight=2.0, corrected=True), 40)
    assert aggregator.control().tolist() == pytest.approx([-0.2])


def test_normalised_averaging_by_hand():
    """FedNova, eq. 5: effective step weight (10 * 1 + 30 * 5) / 40 = 4; direction (10 * 2/1 + 30 * 10/5) / 40 = 2."""
    layout = interleaved_layout([(1, 1)])
    aggregator = Aggregator(layout, torch.zeros(1), None, total_examples=40, normalizes=True)
    aggregator.add(make_update(layout, [True], torch.tensor([2.0]), step_weight=1.0), 10)
    aggregator.add(make_update(layout, [True], torch.tensor([10.0]), step_weight=5.0), 30)
    assert aggregator.encoder().tolist() == [8.0]


@pytest.mark.slow
@given(seed=st.integers(0, 2**32), num_clients=st.integers(2, 6))
def test_a_full_selection_without_correction_equals_flowers_fedavg(seed, num_clients):
    """To 1 ulp per client of the largest operand, not to the bit, for two reasons.

    Clients send differences y - x instead of weights y, which rounds once more; and Flower rounds to float32 after
    each product and each addition, where ours are exact until the end.
    """
    draw = torch.Generator().manual_seed(seed)
    encoder = torch.randn(N, generator=draw)
    clients = [encoder + 0.1 * torch.randn(N, generator=draw) for _ in range(num_clients)]
    examples = torch.randint(1, 1000, (num_clients,), generator=draw).tolist()

    aggregator = Aggregator(LAYOUT, encoder, None, total_examples=sum(examples))
    for weights, number in zip(clients, examples, strict=True):
        aggregator.add(Update(1, 0, select_all(LAYOUT), weights - encoder, 1.0), number)
    flowers = aggregate_arrayrecords(
        [
            RecordDict({"a": ArrayRecord([w.numpy()]), "m": MetricRecord({"num-examples": n})})
            for w, n in zip(clients, examples, strict=True)
        ],
        "num-examples",
    )
    theirs = next(iter(flowers.values())).numpy()
    largest = torch.stack([encoder, *clients]).abs().amax(0).numpy()
    assert (np.abs(aggregator.encoder().numpy() - theirs) <= num_clients * np.spacing(largest)).all()


def test_an_update_from_uncorrected_gradients_moves_x_and_leaves_c():
    """10 examples corrected by c as the clients hold it, 0.3; 30 uncorrected. x: 1 + (10 * 2 + 30 * -2) / 40 = 0.

    c: 0.1 + 0.5 * 10/100 * (-2/2 - 0.3) = 0.035; the share of the examples behind that is 10/100.
    """
    layout = interleaved_layout([(1, 1)])
    aggregator = Aggregator(
        layout, torch.ones(1), torch.tensor([0.1]), held_control=torch.tensor([0.3]), total_examples=100, damping=0.5
    )
    corrected = make_update(layout, [True], torch.tensor([2.0]), step_weight=2.0)
    aggregator.add(corrected, 10)
    aggregator.add(replace(corrected, values=torch.tensor([-2.0]), corrected=False), 30)
    assert aggregator.encoder().tolist() == [0.0]
    assert aggregator.control().tolist() == pytest.approx([0.035])
    assert aggregator.control_share() == pytest.approx(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("held", ["c", "near c"])
@pytest.mark.parametrize("damping", [1.0, 0.5])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_c_equals_the_weighted_sum_of_c_i_under_partial_participation_selection_and_loss(seed, damping, held):
    """20 rounds, 10 clients of unequal size, 40 % participate, random selection, a third of the replies dropped.

    What the clients hold for c is c or something near it; one client in five is not corrected.
    """
    layout = interleaved_layout([(1, 3), (5, 4), (4, 2)], statistics=2)
    draw = torch.Generator().manual_seed(seed)
    examples = torch.randint(5, 500, (10,), generator=draw).tolist()
    encoder = torch.randn(layout.num_entries, generator=draw)
    control = torch.zeros(layout.num_parameter_entries)
    controls = [torch.zeros(layout.num_parameter_entries) for _ in examples]
    lost = 0
    for server_round in range(1, 21):
        held_control = control if held == "c" else control + 0.1 * torch.randn(len(control), generator=draw)
        aggregator = Aggregator(
            layout, encoder, control, held_control=held_control, total_examples=sum(examples), damping=damping
        )
        for client in torch.randperm(10, generator=draw)[:4].tolist():
            mask = torch.rand(layout.num_channels, generator=draw) < 0.4
            selection = Selection(mask)
            values = 0.1 * torch.randn(len(selection.entries(layout)), generator=draw)
            corrected = float(torch.rand((), generator=draw)) < 0.8
            update = Update(server_round, 0, selection, values, 0.5, corrected)
            if float(torch.rand((), generator=draw)) < 1 / 3:  # lost on its way: the client keeps its old c_i
                lost += 1
                continue
            aggregator.add(update, examples[client])
            if corrected:
                controls[client] = refresh_control(controls[client], held_control, update, layout, damping=damping)
        encoder, control = aggregator.encoder(), aggregator.control()
        expected = sum(n / sum(examples) * c_i.double() for n, c_i in zip(examples, controls, strict=True))
        torch.testing.assert_close(control.double(), expected, rtol=1e-5, atol=1e-6)
    assert 15 < lost < 40
    assert float(control.abs().max()) > 0.01


@pytest.mark.parametrize(("examples", "value"), [(0, 1.0), (-3, 1.0), (1, 1e13), (2**40, 100.0)])
def test_an_absurd_update_is_refused_and_nothing_of_it_is_added(examples, value):
    layout = interleaved_layout([(2, 2)])
    aggregator = Aggregator(layout, torch.zeros(4), torch.zeros(4), total_examples=10)
    with pytest.raises(UpdateRejected):
        aggregator.add(make_update(layout, [True, True], torch.tensor([0.0, 1.0, 2.0, value])), examples)
    assert aggregator.num_updates == 0
    assert torch.equal(aggregator.encoder(), torch.zeros(4))
    assert torch.equal(aggregator.control(), torch.zeros(4))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_the_server_learning_rate_scales_the_step(seed):
    updates = random_updates(seed, 3)
    half, _ = aggregate(updates, torch.zeros(N), None, learning_rate=0.5)
    whole, _ = aggregate(updates, torch.zeros(N), None)
    torch.testing.assert_close(2 * half, whole)


@pytest.mark.parametrize("options", [{"learning_rate": 2.0}, {"normalizes": True}, {}])
def test_statistics_are_plain_weighted_means_whatever_scales_the_parameters(options):
    """Variances 0.5 and 0.1 of 10 and 30 examples, sent as differences from 1: 1 + (10 * -0.5 + 30 * -0.9) / 40."""
    layout = interleaved_layout([(1, 1)], statistics=1)
    aggregator = Aggregator(layout, torch.ones(2), None, total_examples=40, **options)
    aggregator.add(make_update(layout, [True], torch.tensor([1.0, -0.5]), step_weight=1.0), 10)
    aggregator.add(make_update(layout, [True], torch.tensor([1.0, -0.9]), step_weight=10.0), 30)
    assert float(aggregator.encoder()[1]) == pytest.approx(0.2)


@given(total=st.integers(1, 2**50), share=st.floats(1e-9, 1.0))
def test_what_the_values_of_a_client_may_be_does_not_depend_on_how_many_examples_there_are(total, share):
    """A running variance of a million, of a client with any share of up to a quadrillion examples."""
    number = max(1, int(share * total))
    values = torch.full((N,), 1e6)
    update = make_update(LAYOUT, [True] * LAYOUT.num_channels, values, step_weight=1.0, corrected=True)
    aggregator = Aggregator(LAYOUT, torch.zeros(N), torch.zeros(LAYOUT.num_parameter_entries), total_examples=total)
    aggregator.add(update, number)
    torch.testing.assert_close(aggregator.encoder(), values)
    expected = torch.full((LAYOUT.num_parameter_entries,), -1e6 * number / total)
    torch.testing.assert_close(aggregator.control(), expected, rtol=1e-5, atol=1e-6)
