"""Whatever a file calls its classes, there are as many as there are labels, each with its name."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from spatl.data.labels import class_labels, class_order, named_labels, united
from spatl.errors import DataError


def read(*values: object, **options: Any) -> tuple[list[int], tuple[str, ...]]:
    found = class_labels("mine", np.array(values), **options)
    return found.numbers.tolist(), found.names


def refusal(values: NDArray[Any], **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        class_labels("mine", values, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_labels_from_0_stay_as_they_are_without_a_word() -> None:
    found = class_labels("mine", np.array([2, 0, 1, 1]))
    assert (found.numbers.tolist(), found.names, found.notes) == ([2, 0, 1, 1], ("0", "1", "2"), ())


def test_labels_from_1_make_no_empty_class() -> None:
    assert read(3, 1, 2, 2) == ([2, 0, 1, 1], ("1", "2", "3"))


def test_one_stray_label_makes_one_class_more_which_is_told() -> None:
    found = class_labels("mine", np.append(np.arange(20) % 10, 999))
    assert found.names == (*map(str, range(10)), "999")
    assert found.numbers[-1] == 10
    assert found.notes == (
        "mine: the labels are not the numbers from 0 to 10: a class is made of each of the 11 that there are, "
        "0, 1, 2, 3, ..., 9, 999",
    )


@pytest.mark.parametrize(
    "values",
    [
        np.array([1.0, 0.0, 1.0]),
        np.array([1, 0, 1], np.float16),
        np.array([1, 0, 1], np.uint64),
        np.array([True, False, True]),
        np.array([[1], [0], [1]]),
        np.array(["1", "0", "1"]),
        np.array([b"1", b"0", b"1"]),
    ],
)
def test_whole_numbers_of_any_type_are_labels(values: NDArray[Any]) -> None:
    found = class_labels("mine", values)
    assert (found.numbers.tolist(), found.numbers.dtype, found.names) == ([1, 0, 1], np.int64, ("0", "1"))


def test_texts_are_sorted_and_numbers_written_as_texts_by_their_value() -> None:
    assert read("dog", "cat", "dog") == ([1, 0, 1], ("cat", "dog"))
    assert read("10", "9", "9") == ([1, 0, 0], ("9", "10"))
    assert class_order(["10", "2", "01"]) == ["01", "2", "10"]
    assert class_order(["10", "2", "b"]) == ["10", "2", "b"]


def test_classes_may_be_announced_where_labels_count_from_0() -> None:
    assert read(1, 0, 1, num_classes=4) == ([1, 0, 1], ("0", "1", "2", "3"))
    assert "of 3 classes the labels must lie in [0, 3), got 3: count them from 0" in refusal(
        np.array([1, 2, 3, 3]), num_classes=3
    )
    assert "num_classes goes with labels that are numbers" in refusal(np.array(["a", "b", "a"]), num_classes=3)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.array([0.0, np.nan, 1.0]), "got nan for example 1, one of 1 that have none"),
        (np.array([0.0, np.inf, 1.0]), "got inf for example 1"),
        (np.array([0.0, 0.5, 1.0]), "got 0.5 for example 1"),
        (np.array([0, -1, -100]), "labels must be 0 or more, got -100 and others below 0, 2 in all"),
        (np.array([0.0, -1.0, 1.0]), "labels must be 0 or more, got -1"),
        (np.array([0, 0, 10**6]), "below 1000000, got 1000000: are these ids?"),
        (np.arange(100) * 7, "each of the 100 examples has a label of its own: are these ids?"),
        (np.arange(100).astype(str), "each of the 100 examples has a label of its own: are these ids?"),
        (np.array(["a", " ", "a"]), "got an empty text for example 1"),
        (np.eye(4), "got float64 [4, 4]; of one-hot rows take values.argmax(1)"),
        (np.array([1j, 0, 0]), "got complex128 [3]"),
        (np.array([], np.int64), "got int64 [0]"),
    ],
)
def test_what_is_no_label_is_named(values: NDArray[Any], told: str) -> None:
    assert told in refusal(values)


@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=40), st.lists(st.integers(0, 10**6 - 1), min_size=6, max_size=6)
)
def test_every_class_has_an_example_and_its_label_for_a_name(places: list[int], labels: list[int]) -> None:
    values = np.array([labels[place] for place in places * 2])
    found = class_labels("mine", values)
    assert [int(found.names[number]) for number in found.numbers] == values.tolist()
    assert set(found.numbers.tolist()) == set(range(len(found.names)))


def test_labels_that_are_texts_are_of_the_classes_that_a_user_named_in_the_users_order() -> None:
    """`low` is no 1 because `high` comes before it in the alphabet."""
    found = named_labels("x", np.array(["low", "high", "low"]), ("low", "middle", "high"))
    assert (found.numbers.tolist(), found.names) == ([0, 2, 0], ("low", "middle", "high"))
    with pytest.raises(DataError, match=r"^x: lwo is none of the class_names: expected low, high"):
        named_labels("x", np.array(["low", "lwo"]), ("low", "high"))


def test_labels_that_are_numbers_count_the_classes_that_a_user_named() -> None:
    """Of three classes of which nobody has the second, the third stays the third."""
    assert named_labels("x", np.array([0, 2, 2]), ("a", "b", "c")).numbers.tolist() == [0, 2, 2]
    assert named_labels("x", np.array([1.0, 2.0]), ("a", "b")).numbers.tolist() == [0, 1]  # all there are, in order
    with pytest.raises(DataError, match="of 3 class_names the labels must lie in"):
        named_labels("x", np.array([1, 3]), ("a", "b", "c"))


@pytest.mark.parametrize(
    ("orders", "united_order"),
    [
        (["ab", "bc"], "abc"),
        (["cab"], "cab"),  # as a user gave it
        (["ca", "cab", "ab"], "cab"),
        (["xc", "ca"], "xca"),
        (["ba", "dc"], "badc"),  # nothing is said of the rest, which goes by the alphabet
        (["ab", "ba"], "ab"),  # a contradiction
        (["cb", "ba", "ac"], "abc"),
    ],
)
def test_the_classes_of_several_are_in_the_order_that_each_gives(orders: list[str], united_order: str) -> None:
    assert "".join(united(orders)) == united_order
    assert "".join(united(reversed(orders))) == united_order


@given(st.lists(st.lists(st.integers(0, 20), max_size=8, unique=True), min_size=1, max_size=5))
def test_what_sorted_labels_made_is_united_in_sorted_order(found: list[list[int]]) -> None:
    """Devices that named nothing agree on the order that they agreed on before."""
    orders = [class_order(map(str, each)) for each in found]
    assert united(orders) == class_order({name for each in orders for name in each})
