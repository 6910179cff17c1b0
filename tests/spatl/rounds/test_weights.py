"""Weights of clients whose word is all that the server has: bounded in share, and who is above is named."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatl.rounds.federation import Federation
from spatl.rounds.members import rejoined
from spatl.rounds.server import first_state
from spatl.rounds.weights import bounded_weights
from tests.support.federations import blueprint_of, tiny_config

counts = st.dictionaries(st.integers(0, 60), st.integers(1, 10**12), min_size=1, max_size=40)


def test_a_client_that_says_a_billion_counts_as_a_fifth_and_is_named(caplog):
    """Nine of 100 and one of 10^9: B = 0.2 (900 + B) is 225."""
    told = dict.fromkeys(range(9), 100) | {9: 10**9}
    with caplog.at_level(logging.WARNING):
        assert bounded_weights(told, 0.2) == {9: 225}
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "client 9 says that it has 1,000,000,000 training examples, 100 % of all: it counts as 225, for nobody's word "
        "counts more than 20 % (server.max_weight)"
    )


def test_two_that_do_so_count_alike():
    """Eight of 100: B = 0.2 (800 + 2 B) is 266.7."""
    assert bounded_weights(dict.fromkeys(range(8), 100) | {8: 10**6, 9: 10**9}, 0.2) == {8: 266, 9: 266}


@pytest.mark.parametrize("told", [{0: 10, 1: 1000}, dict.fromkeys(range(20), 5), {0: 1}, {0: 60, 1: 30, 2: 30}, {}])
def test_honest_federations_are_left_as_they_are(told):
    """Of two, any share is at most twice an equal one."""
    assert bounded_weights(told, 0.2) == {}
    assert bounded_weights(told, 1.0) == {}


@given(told=counts, share=st.floats(0.01, 1.0))
def test_nobody_is_above_the_share_and_who_is_below_is_not_touched(told, share):
    weights = {**told, **bounded_weights(told, share)}
    assert weights == {**told, **bounded_weights(dict(reversed(told.items())), share)}
    most = max(share, 2 / len(told))
    for client, weight in weights.items():
        assert 1 <= weight <= told[client]
        assert weight == 1 or weight <= most * sum(weights.values()) * (1 + 1e-9) + 1
    assert min(weights.values()) == min(told.values()) or min(weights.values()) == 1


def test_where_the_server_knows_the_numbers_nothing_is_bounded_and_new_clients_change_all_shares_alike():
    config = tiny_config(method="fedavg")
    federation = Federation(blueprint_of(config), clients=frozenset(range(5)))
    state = first_state(federation, {0: 10**6, 1: 1, 2: 1, 3: 1, 4: 1})
    assert federation.max_weight == 1
    assert state.weights == {}
    told = dict.fromkeys(range(9), 10) | {9: 10**6}
    bounded = rejoined(first_state(federation, {}), told, max_weight=0.2)
    assert bounded.shares[9] == 22
    later = rejoined(bounded, {**told, 10: 10**7}, max_weight=0.2)
    assert {client: later.shares[client] for client in told} == dict(bounded.shares)
    assert later.shares[10] <= 0.2 * sum(later.shares.values()) + 1
    assert later.num_examples[10] == 10**7
