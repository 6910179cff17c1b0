"""Cosines of updates with the sum of the others', against dense vectors, and what has none."""

import math
from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection, select_all
from spatl.rounds.aggregation import Aggregator, channel_energies
from spatl.rounds.cosines import NUMBERS, Sketches
from spatl.rounds.robust import MedianAggregator
from spatl.wire.update import Update
from tests.support.layouts import interleaved_layout

SMALL = interleaved_layout([(1, 3), (6, 40)], statistics=5)
LARGE = interleaved_layout([(1, 3), (60, 180)], statistics=5)
SIGMAS = 6
Dense = Mapping[int, torch.Tensor]


def update_of(vector: torch.Tensor, selection: Selection, layout: EncoderLayout, step_weight: float = 1.0) -> Update:
    return Update(1, 0, selection, selection.take(vector, layout), step_weight)


def found_of(
    layout: EncoderLayout, updates: Mapping[int, Update], numbers: Mapping[int, int], *, normalizes: bool = False,
    rule: type[Aggregator] = Aggregator, order: Sequence[int] = (),
) -> dict[int, float | None]:  # fmt: skip
    """What a server finds that gets the updates in an order."""
    more = {"trim_fraction": 0.1} if rule is MedianAggregator else {}
    aggregator = rule(
        layout=layout, encoder=torch.zeros(layout.num_entries), control=None, total_examples=sum(numbers.values()),
        normalizes=normalizes, **more,
    )  # fmt: skip
    sketches = Sketches(layout, seed=1, server_round=2, normalizes=normalizes)
    for client in order or list(updates):
        aggregator.add(updates[client], numbers[client])
        sketches.add(client, updates[client], numbers[client])
    return sketches.cosines(channel_energies(aggregator))


def dense_of(updates: Mapping[int, Update], layout: EncoderLayout) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """The parameters of each update, float64 [P], 0 where it sends nothing, and where it sends something."""
    found = {}
    for client, update in updates.items():
        entries = update.selection.entries(layout)
        vector, sent = torch.zeros(layout.num_entries, dtype=torch.float64), torch.zeros(layout.num_entries)
        vector[entries], sent[entries] = update.values.double(), 1.0
        length = layout.num_parameter_entries
        found[client] = vector[:length], sent[:length].bool()
    return found


def drawn(layout: EncoderLayout, seed: int, number: int) -> tuple[dict[int, Update], dict[int, int]]:
    """Updates with something in common, whose entries are of sizes far apart, each on channels of its own choice."""
    rng = torch.Generator().manual_seed(seed)
    common = torch.randn(layout.num_entries, generator=rng)
    scales = (2 * torch.randn(layout.num_entries, generator=rng)).exp()
    updates, numbers = {}, {}
    for client in range(number):
        own = torch.randn(layout.num_entries, generator=rng) + common * float(torch.randn((), generator=rng))
        mask = torch.rand(layout.num_channels, generator=rng) < 0.4 + 0.6 * (client % 2)
        updates[client] = update_of(own * scales * 1e-2, Selection(mask), layout)
        numbers[client] = int(torch.randint(1, 500, (), generator=rng))
    return updates, numbers


@pytest.mark.slow
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_of_a_large_encoder_it_is_the_dense_one_within_the_documented_error(seed: int, number: int) -> None:
    """The product of two sketches is off by six standard deviations at most, each sqrt(2 / m) of the lengths' product.

    The length of the others' sum on what a client sent follows from it, and is off by twice n_i of that.
    """
    updates, numbers = drawn(LARGE, seed, number)
    assert LARGE.num_parameter_entries > 2 * NUMBERS
    found, dense = found_of(LARGE, updates, numbers), dense_of(updates, LARGE)
    total = sum((numbers[client] * vector for client, (vector, _) in dense.items()), torch.zeros(1))
    for client, (vector, sent) in dense.items():
        others = total - numbers[client] * vector
        product, square = float(vector @ others), float(others[sent].square().sum())
        doubt = SIGMAS * math.sqrt(2 / NUMBERS) * float(vector.norm() * others.norm())
        least, most = square - 2 * numbers[client] * doubt, square + 2 * numbers[client] * doubt
        if least <= 0:  # the others sent too little of what this client did
            continue
        low, high = (
            min(1.0, max(-1.0, each / (math.sqrt(least if far else most) * float(vector.norm()))))
            for each, far in ((product - doubt, product - doubt < 0), (product + doubt, product + doubt > 0))
        )
        value = found[client]
        assert value is not None
        assert low - 1e-4 <= value <= high + 1e-4


@pytest.mark.slow
@given(st.integers(0, 10**6), st.integers(2, 6), st.sampled_from([Aggregator, MedianAggregator]))
def test_of_up_to_so_many_entries_it_is_exact(seed: int, number: int, rule: type[Aggregator]) -> None:
    """Whatever the rule makes of the updates; statistics do not count."""
    updates, numbers = drawn(SMALL, seed, number)
    found, dense = found_of(SMALL, updates, numbers, rule=rule), dense_of(updates, SMALL)
    for client, (vector, sent) in dense.items():
        others = sum(
            (numbers[each] * other for each, (other, _) in dense.items() if each != client), torch.zeros(len(vector))
        )[sent]
        lengths = float(vector.norm() * others.norm())
        value = found[client]
        if lengths == 0:
            assert value is None
        else:
            assert value is not None
            assert value == pytest.approx(float(vector[sent] @ others) / lengths, abs=6e-5)


@pytest.mark.slow
@given(st.integers(0, 10**6), st.randoms())
def test_it_is_the_same_in_any_order_of_the_replies(seed: int, order: object) -> None:
    updates, numbers = drawn(LARGE, seed, 5)
    clients = list(updates)
    order.shuffle(clients)  # type: ignore[attr-defined]
    assert found_of(LARGE, updates, numbers, order=clients) == found_of(LARGE, updates, numbers)


@pytest.mark.slow
@given(st.integers(0, 10**6), st.booleans())
def test_an_update_turned_around_has_minus_the_cosine_of_the_honest_one(seed: int, large: bool) -> None:
    """Of five that have a direction in common, one sends it the other way round; the others find less in common."""
    layout, rng = LARGE if large else SMALL, torch.Generator().manual_seed(seed)
    common = torch.randn(layout.num_entries, generator=rng)
    vectors = [common + torch.randn(layout.num_entries, generator=rng) for _ in range(5)]
    numbers = dict.fromkeys(range(5), 100)
    both = []
    for sign in (1, -1):
        signed = [sign * vector if client == 3 else vector for client, vector in enumerate(vectors)]
        updates = {client: update_of(each, select_all(layout), layout) for client, each in enumerate(signed)}
        both.append(found_of(layout, updates, numbers))
    honest, turned = both
    one, other = honest[3], turned[3]
    assert one is not None
    assert other is not None
    assert one > 0.4
    assert other == pytest.approx(-one, abs=0.06 if large else 1e-4)
    assert all((turned[client] or 0) > 0.2 for client in (0, 1, 2, 4))


def test_two_channels_by_hand() -> None:
    """Client 0 sends (1, 2) on channel 0 alone, client 1 (2, 0 | 9, 9), client 2 (0, 1 | -5, 0); 2, 1 and 4 examples.

    To client 0, on channel 0, the others' sum is (2, 0) + 4 (0, 1) = (2, 4), which is where it points itself. To client
    1 it is 2 (1, 2) + 4 (0, 1) = (2, 8), and 4 (-5, 0) = (-20, 0).
    """
    layout = interleaved_layout([(2, 2)])  # entries 0 and 2 belong to channel 0
    vectors = {
        0: torch.tensor([1.0, 0, 2, 0]), 1: torch.tensor([2.0, 9, 0, 9]), 2: torch.tensor([0.0, -5, 1, 0]),
    }  # fmt: skip
    masks = {0: [True, False], 1: [True, True], 2: [True, True]}
    updates = {each: update_of(vectors[each], Selection(torch.tensor(masks[each])), layout) for each in vectors}
    found = found_of(layout, updates, {0: 2, 1: 1, 2: 4})
    second = (2 * 2 - 9 * 20) / math.sqrt(4 + 81 + 81) / math.sqrt(4 + 64 + 400)
    assert [found[0], found[1]] == [1.0, round(second, 4)]


def test_a_method_that_normalises_compares_updates_by_step() -> None:
    """Two updates along different axes, and a third one: what is divided by 10 weighs a tenth in the others' sum."""
    layout = interleaved_layout([(1, 2)])
    whole = select_all(layout)
    updates = {
        0: update_of(torch.tensor([1.0, 0.0]), whole, layout, 1.0),
        1: update_of(torch.tensor([30.0, 0.0]), whole, layout, 10.0),
        2: update_of(torch.tensor([0.0, 4.0]), whole, layout, 1.0),
    }
    numbers = dict.fromkeys(range(3), 7)
    assert found_of(layout, updates, numbers, normalizes=True)[0] == 0.6
    assert found_of(layout, updates, numbers)[0] == round(30 / math.hypot(30, 4), 4)


def test_nothing_is_said_of_one_client_nor_of_channels_that_no_other_sent_nor_of_nothing() -> None:
    rng = torch.Generator().manual_seed(1)
    left, right = torch.arange(LARGE.num_channels) < 30, torch.arange(LARGE.num_channels) >= 30
    vector = torch.randn(LARGE.num_entries, generator=rng)
    own = update_of(vector, Selection(left), LARGE)
    other = update_of(vector, Selection(right), LARGE)
    nothing = update_of(torch.zeros(LARGE.num_entries), select_all(LARGE), LARGE)
    assert found_of(LARGE, {4: own}, {4: 10}) == {4: None}
    assert found_of(LARGE, {4: own, 5: other}, {4: 10, 5: 10}) == {4: None, 5: None}
    assert found_of(LARGE, {4: own, 5: nothing}, {4: 10, 5: 10}) == {4: None, 5: None}
    assert found_of(LARGE, {}, {}) == {}
