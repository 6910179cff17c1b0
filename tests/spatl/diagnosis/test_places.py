"""Places of clients among all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatl.diagnosis.places import FEWEST, check_number, places
from spatl.errors import SpatlError

NUMBERS = st.lists(st.floats(-1e6, 1e6).map(lambda value: round(value, 3)), min_size=FEWEST, max_size=20)


def test_a_place_is_the_distance_from_the_median_in_the_median_distance():
    """1 2 3 4 10: median 3, distances 2 1 0 1 7, of which the median is 1."""
    found = places(dict(enumerate([1.0, 2.0, 3.0, 4.0, 10.0])))
    assert found == pytest.approx({0: -2 / 1.4826, 1: -1 / 1.4826, 2: 0.0, 3: 1 / 1.4826, 4: 7 / 1.4826})


def test_where_less_is_worse_places_are_turned_round():
    values = dict(enumerate([1.0, 2.0, 3.0, 4.0, 10.0]))
    turned = places(values, worse=-1)
    assert {client: -place for client, place in places(values).items()} == turned


def test_where_most_clients_are_equal_the_mean_distance_takes_the_place_of_the_median():
    """Distances 0 0 0 0 5: mean 1."""
    assert places(dict(enumerate([2.0, 2.0, 2.0, 2.0, 7.0])))[4] == pytest.approx(5 / 1.2533)
    assert set(places(dict.fromkeys(range(6), 3.0)).values()) == {0.0}


def test_who_has_no_score_has_no_place_and_moves_nobodys():
    values = dict(enumerate([1.0, 2.0, 3.0, 4.0, 10.0]))
    assert places({**values, 9: None}) == {**places(values), 9: None}
    assert places({**dict.fromkeys(range(9)), **dict(enumerate([1.0, 2.0, 3.0, 4.0]))}) == dict.fromkeys(range(9))


@given(NUMBERS, st.floats(0.1, 10), st.floats(-10, 10))
def test_places_do_not_depend_on_the_unit_of_a_score(values, factor, shift):
    one = places(dict(enumerate(values)))
    other = places(dict(enumerate([factor * value + shift for value in values])))
    for client, place in one.items():
        assert other[client] == pytest.approx(place, rel=1e-3, abs=1e-3)


@given(st.lists(st.integers(0, 100), min_size=4, max_size=10, unique=True), st.integers(1, 3))
def test_a_minority_that_is_far_off_cannot_make_itself_usual(values, number):
    """With the median and the median distance both within [0, 100], 1e5 is at least 999 / 1.4826 away."""
    sick = {100 + each: 100_000.0 for each in range(number)}
    found = places({**dict(enumerate(values)), **sick})
    if len(values) + number >= FEWEST:
        assert all(found[client] >= 999 / 1.4826 for client in sick)


def test_fewer_clients_than_say_what_is_usual_are_refused_in_one_line():
    with pytest.raises(SpatlError, match="needs findings of at least 5 clients, got 4"):
        check_number(4)
    check_number(FEWEST)
