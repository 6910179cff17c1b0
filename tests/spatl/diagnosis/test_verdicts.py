"""Verdicts: what scores say of a client, in plain words."""

from dataclasses import replace

import pytest
import torch

from spatl.diagnosis.relabelling import Mixture
from spatl.diagnosis.verdicts import (
    AGAINST,
    COSINE_LIMIT,
    FALSE_ALARMS,
    MEAN_Z_LIMIT,
    MEASURED,
    MISLABELLED_LIMIT,
    NOISY,
    NOTHING,
    RANDOM,
    RELABELLED,
    Evidence,
    Verdict,
    evidence_of,
    evidence_of_updates,
    verdict_of,
)
from spatl.saliency.findings import Findings
from tests.support.findings import findings_on

COUNTS = [10, 10, 20]
NAMES = ("cat", "dog", "owl")


def own(num_correct: int, labels: tuple[int, int, int] = (20, 20, 40)) -> Findings:
    """Findings on 40 examples of which so many are right, with training labels."""
    numbers = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
    correct = torch.arange(40) < num_correct
    found = findings_on(numbers, torch.ones(40, 1), torch.ones(40), torch.ones(40, 1), correct, 3)
    return replace(found, labels=torch.tensor(labels))


def mixture(*rows: tuple[float, float, float]) -> Mixture:
    return Mixture(torch.tensor(rows, dtype=torch.float64), torch.tensor(COUNTS))


ONE_PAIR = mixture((0.1, 0.9, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
ALL_PAIRS = mixture((0.4, 0.3, 0.3), (0.3, 0.4, 0.3), (0.3, 0.3, 0.4))


def said(
    findings: Findings, mixed: Mixture, of_data: float = 2.0, of_updates: float = 0.0, cosine: float | None = None
) -> Verdict:
    return verdict_of(findings, mixed, Evidence(of_data, of_updates, cosine), NAMES)


def test_a_class_whose_examples_look_like_one_other_is_named_with_it():
    """Nine of ten cats look like dogs, and the client has no dog."""
    found = said(own(30, labels=(20, 0, 40)), ONE_PAIR)
    assert found.text == "labels of class cat look like class dog (relabelled class)"
    assert (found.kind, found.labelled, found.looks_like) == (RELABELLED, 0, 1)
    assert found.false_alarms == FALSE_ALARMS[RELABELLED] / MEASURED


def test_it_is_none_where_the_client_has_more_examples_of_the_class_that_they_look_like():
    """A client that calls its dogs dogs has not relabelled them."""
    assert said(own(30), ONE_PAIR).kind == NOISY


def test_labels_that_are_right_by_chance_and_look_like_all_classes_are_random():
    """A third of 40 and two standard errors, .149, are 19.3 examples."""
    assert said(own(19), ALL_PAIRS).kind == RANDOM
    assert said(own(20), ALL_PAIRS).kind == NOISY


@pytest.mark.parametrize("evidence", [0.0, 0.6, 1.0])
def test_too_little_evidence_in_all_is_nothing_found(evidence):
    assert said(own(0), ALL_PAIRS, evidence, 1 - evidence) == Verdict(NOTHING, "nothing found")


def test_what_updates_say_is_said_of_updates_where_the_data_say_less():
    """Below a right angle, or where there is next to nothing in the data."""
    assert said(own(40), ALL_PAIRS, 0.0, 1.5, -0.5).text == (
        "its updates point against the others' (update against the others)"
    )
    assert said(own(40), ALL_PAIRS, 0.9, 0.9, -0.5).kind == AGAINST
    assert "elsewhere than the others'" in said(own(40), ALL_PAIRS, 0.4, 0.9, 0.1).text
    assert said(own(30), ALL_PAIRS, 0.9, 0.9, 0.1).kind == NOISY
    assert said(own(30), ALL_PAIRS, 1.5, 9.0, -0.5).kind == NOISY


def test_the_evidence_of_updates_is_the_place_of_their_cosine_in_units_of_its_limit():
    """Median .5; distances .4 .2 0 .1 .2, of which the median is .2. A client without a cosine has none against it."""
    found = evidence_of_updates(dict(enumerate([0.1, 0.7, 0.5, 0.6, 0.3, None])))
    assert found == pytest.approx({0: 2 / 1.4826 / COSINE_LIMIT, 1: 0, 2: 0, 3: 0, 4: 1 / 1.4826 / COSINE_LIMIT, 5: 0})


def test_clients_that_are_much_alike_are_not_accused_of_a_small_difference():
    """The first is 30 median distances away, which is .03; a robust deviation is taken for .05 at least."""
    found = evidence_of_updates(dict(enumerate([0.870, 0.900, 0.901, 0.899, 0.901])))
    assert found[0] == pytest.approx(0.03 / 0.05 / COSINE_LIMIT)


def test_evidence_is_the_larger_of_both_scores_above_the_middle_in_units_of_their_limits():
    """Of 40 examples two thirds of a mean z count. A client without a score is in the middle."""
    clients = dict.fromkeys(range(5), own(40))
    labels = {0: 0.05, 1: 0.05, 2: 0.05 + MISLABELLED_LIMIT, 3: 0.05, 4: None}
    profiles = {0: 0.0, 1: 3 * MEAN_Z_LIMIT, 2: 0.0, 3: -9.0, 4: 0.0}
    found = evidence_of(clients, labels, profiles)
    assert found == pytest.approx({0: 0.0, 1: 2.0, 2: 1.0, 3: 0.0, 4: 0.0})
