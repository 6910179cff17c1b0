"""Scores of clients, by numbers worked out by hand."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.diagnosis.scores import (
    SCORES,
    class_distances,
    label_divergence,
    loss_of_worst_class,
    loss_within_class,
    mean_z,
    prototype_distance,
    saliency_within_class,
)
from spatl.saliency.findings import Findings
from tests.support.findings import drawn_findings, findings_on


def of(labels: list[int], profiles: list[float], losses: list[float], features: list[float]) -> Findings:
    """Findings on examples with one filter, one feature and two classes, all of them right."""
    return findings_on(
        torch.tensor(labels),
        torch.tensor(profiles)[:, None],
        torch.tensor(losses),
        torch.tensor(features)[:, None],
        torch.ones(len(labels), dtype=torch.bool),
        2,
    )


CLIENTS = {
    0: of([0, 0, 1], [1.0, 1.0, 4.0], [0.1, 0.3, 1.0], [1.0, 1.0, 5.0]),
    1: of([0, 1], [3.0, 3.0], [0.2, 2.0], [2.0, 5.0]),
    2: of([0], [6.0], [0.8], [5.0]),
}
"""Profiles 1 1 4 3 3 6: mean 3, variance (4 + 4 + 1 + 0 + 0 + 9) / 6 = 3."""


def test_the_mean_z_is_the_clients_mean_profile_in_deviations_of_all_examples():
    """Own means 2, 3 and 6."""
    scores = mean_z(CLIENTS)
    assert scores == pytest.approx({0: -1 / 3**0.5, 1: 0.0, 2: 3 / 3**0.5})


def test_the_loss_within_class_is_that_above_others_of_the_same_class_by_counts():
    """Client 0: class 0 has .2 where others have (.2 + .8) / 2 = .5, class 1 has 1 where the other has 2:
    (2 * -.3 + 1 * -1) / 3. Client 1: .2 against (.4 + .8) / 3 = .4, 2 against 1: (-.2 + 1) / 2. Client 2: .8 against
    (.4 + .2) / 3 = .2."""
    assert loss_within_class(CLIENTS) == pytest.approx({0: -1.6 / 3, 1: 0.4, 2: 0.6})


def test_the_worst_class_is_that_of_the_highest_loss_above_others_for_its_number_of_examples():
    """By the same excesses: client 0 has -.3 of two examples and -1 of one, client 1 -.2 and 1, client 2 .6 alone."""
    assert loss_of_worst_class(CLIENTS) == pytest.approx({0: -0.3 * 2**0.5, 1: 1.0, 2: 0.6})


def test_the_saliency_within_class_is_so_too_in_deviations_of_all_examples():
    """Client 0: 1 against (3 + 6) / 2, 4 against 3: (2 * -3.5 + 1) / 3. Client 1: 3 against 8 / 3, 3 against 4.
    Client 2: 6 against 5 / 3."""
    deviation = 3**0.5
    expected = {0: -2 / deviation, 1: -1 / 3 / deviation, 2: 13 / 3 / deviation}
    assert saliency_within_class(CLIENTS) == pytest.approx(expected)


def test_prototypes_are_as_far_as_they_are_in_the_usual_distance_of_their_class():
    """Class 0: 1 from 3.5, 2 from 7 / 3, 5 from 4 / 3, of 2, 1 and 1 examples: 2.5 root 2, 1 / 3 and 11 / 3, of which
    the first is the median. Class 1 has no distance, which says nothing."""
    usual = 2.5 * 2**0.5
    distances = {client: own.tolist() for client, own in class_distances(CLIENTS).items()}
    assert distances[0] == pytest.approx([2.5, 0.0])
    assert distances[1] == pytest.approx([1 / 3, 0.0])
    assert distances[2] == pytest.approx([11 / 3, float("nan")], nan_ok=True)
    assert prototype_distance(CLIENTS) == pytest.approx({0: 1.0, 1: 1 / 3 / usual, 2: 11 / 3 / usual})


def test_a_prototype_that_a_client_keeps_to_itself_counts_for_nobody():
    clients = {client: each.without_small_classes(2) for client, each in CLIENTS.items()}
    assert prototype_distance(clients) == {0: None, 1: None, 2: None}
    assert prototype_distance({**CLIENTS, 2: clients[2]})[2] is None


def test_the_divergence_of_labels_is_that_of_jensen_and_shannon_in_bits():
    """Of (1/2, 1/2) and (1, 0), with the middle (3/4, 1/4): H = .811278 bits, less half of one bit."""
    clients = {0: of([0, 1], [1, 1], [1, 1], [1, 1]), 1: of([0, 0], [1, 1], [1, 1], [1, 1])}
    assert label_divergence(clients) == pytest.approx({0: 0.311278, 1: 0.311278}, abs=1e-6)


def test_a_client_of_a_class_that_nobody_else_has_gets_no_score_within_classes():
    """And none of labels where it tells of none."""
    clients = {0: of([0, 0], [1, 2], [1, 1], [1, 1]), 1: of([1], [3], [1], [1]), 2: of([1], [3], [1], [1])}
    for score in (loss_within_class, loss_of_worst_class, saliency_within_class, prototype_distance):
        assert score(clients)[0] is None
        assert score(clients)[1] is not None or score is prototype_distance
    silent = replace(clients[0], labels=torch.zeros(2, dtype=torch.int64))
    assert label_divergence({**clients, 0: silent})[0] is None


@pytest.mark.slow
@given(st.permutations(range(5)), st.integers(0, 1000))
def test_no_score_depends_on_the_order_of_clients(order, seed):
    clients = {client: drawn_findings(seed + client) for client in range(5)}
    for score in SCORES.values():
        if score.of is not None:
            assert score.of({client: clients[client] for client in order}) == score.of(clients)


@pytest.mark.slow
@given(st.integers(0, 1000))
def test_clients_that_are_alike_have_no_loss_saliency_or_distance_above_each_others(seed):
    clients = dict.fromkeys(range(4), drawn_findings(seed, num_examples=20))
    for score in (loss_within_class, saliency_within_class, mean_z):
        assert list(score(clients).values()) == pytest.approx([0.0] * 4, abs=1e-5)
    assert all(not float(each.nan_to_num().max()) > 1e-5 for each in class_distances(clients).values())
