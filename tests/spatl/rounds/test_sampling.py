"""Sampling repeats, is fair, and never depends on Flower's node ids."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from spatl.rounds.federation import Federation
from spatl.rounds.members import choose_clients
from spatl.rounds.sampling import sample_clients
from spatl.rounds.server import first_state
from tests.support.federations import blueprint_of, tiny_config


@given(
    clients=st.sets(st.integers(0, 10_000), min_size=1, max_size=60),
    fraction=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**32),
    server_round=st.integers(1, 1000),
)
def test_a_sample_is_a_repeatable_subset_of_the_right_size(clients, fraction, seed, server_round):
    one = sample_clients(list(clients), fraction=fraction, seed=seed, server_round=server_round)
    other = sample_clients(sorted(clients, reverse=True), fraction=fraction, seed=seed, server_round=server_round)
    assert one == other == tuple(sorted(set(one)))
    assert set(one) <= clients
    assert len(one) == min(len(clients), max(1, round(fraction * len(clients))))


def test_every_client_gets_its_turn():
    """400 rounds of 4 among 10: each is drawn 160 times, give or take 4 standard deviations of 9.8."""
    counts = Counter(
        client for r in range(1, 401) for client in sample_clients(range(10), fraction=0.4, seed=1, server_round=r)
    )
    assert all(120 <= counts[client] <= 200 for client in range(10))


def test_a_secret_of_the_servers_decides_where_it_has_one_and_the_runs_seed_otherwise():
    config = tiny_config(server={"fraction_train": 0.4}, partition={"num_clients": 20})
    federation = Federation(blueprint_of(config), clients=frozenset(range(20)))

    def drawn(secret):
        state = first_state(federation, dict.fromkeys(range(20), 30), sampling_seed=secret)
        return [choose_clients(federation, state, server_round)[0] for server_round in range(1, 6)]

    assert drawn(2**127) == drawn(2**127)
    assert drawn(2**127) != drawn(2**127 + 1)
    assert drawn(None) == drawn(config.seed) != drawn(2**127)
