"""The study of diagnosis: its numbers hold together, and one federation of each kind goes through it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.studies.diagnosis import EVIDENCE, LOGISTIC, OF_DATA, areas, auroc, diagnosis_of, fitted, numbers_of
from tests.support.faults import HONEST, RANDOM, case_of, lying

NUMBERS = st.lists(st.integers(-5, 5), min_size=1, max_size=8)


@given(NUMBERS, NUMBERS)
def test_the_area_is_the_share_of_pairs_in_the_right_order_and_half_of_the_equal_ones(sick, honest):
    pairs = [(one > other) + (one == other) / 2 for one in sick for other in honest]
    assert auroc(sick, honest) == pytest.approx(sum(pairs) / len(pairs))
    assert auroc(sick, honest) == pytest.approx(1 - auroc(honest, sick))


@given(NUMBERS, NUMBERS)
def test_the_area_knows_the_order_alone(sick, honest):
    assert auroc(sick, honest) == auroc([one**3 + one for one in sick], [other**3 + other for other in honest])


@pytest.mark.slow
def test_random_labels_are_found_and_those_of_clients_that_lie_by_their_updates_alone(tmp_path):
    """On one federation of the digits; the regression is fitted on what it is then asked about, and must find them."""
    case = case_of("digits", RANDOM, seed=900, keep=tmp_path)
    again = case_of("digits", RANDOM, seed=900, keep=tmp_path)  # as it was kept
    weights = fitted([case])
    assert numbers_of(diagnosis_of(case), weights) == numbers_of(diagnosis_of(again), weights)
    found = areas([case], weights, offset=False)
    assert found[EVIDENCE].tolist() == found["mean_z"].tolist() == found[LOGISTIC].tolist() == [1.0]
    of_liars = areas([lying(case)], None, offset=False)
    assert (of_liars[OF_DATA][0] < 0.9, of_liars[EVIDENCE][0] > 0.9) == (True, True)


@pytest.mark.slow
def test_a_federation_without_a_fault_has_nobody_sick():
    case = case_of("digits", HONEST, seed=900)
    assert case.sick == ()
    assert not case.relabelled
