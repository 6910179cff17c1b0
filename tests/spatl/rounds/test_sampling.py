"""Sampling repeats, is fair, and never depends on Flower's node ids."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from spatl.rounds.sampling import sample_clients


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
