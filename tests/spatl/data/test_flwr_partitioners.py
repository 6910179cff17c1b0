"""The partitioners of flwr-datasets."""

import importlib
import random
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spatl.data import PARTITIONERS, partition
from spatl.errors import DataError

LABELS = torch.arange(600) % 10
GROUPS = torch.arange(600) // 25  # 24 of 25 examples each
FLOWER = sorted(set(PARTITIONERS) - {"dirichlet", "file", "iid", "natural", "own"})

requests = st.fixed_dictionaries({
    "num_clients": st.integers(1, 8), "alpha": st.floats(1, 100), "labels_per_client": st.integers(1, 5),
    "min_examples": st.integers(1, 3), "seed": st.integers(0, 2**32),
})  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def library_of_partitioners() -> None:
    """The library, whose import takes seconds that are nobody's test and not for every process that collects tests."""
    importlib.import_module("flwr_datasets.partitioner")


def cut(name: str, labels: Tensor = LABELS, **changes: Any) -> tuple[Tensor, ...]:
    values = {"num_clients": 6, "seed": 1, "alpha": 1.0, "labels_per_client": 3, "min_examples": 5}
    return partition(labels, name=name, **{**values, **changes})


def class_counts(parts: tuple[Tensor, ...], labels: Tensor = LABELS) -> list[int]:
    return [len(labels[part].unique()) for part in parts]


@pytest.mark.slow
@settings(max_examples=15)
@given(name=st.sampled_from(FLOWER), request=requests)
def test_no_example_has_two_clients_and_every_one_has_a_client_where_that_is_promised(
    name: str, request: dict[str, Any]
) -> None:
    parts = cut(name, **request)
    everything = torch.cat(parts)
    assert len(parts) == request["num_clients"]
    assert len(everything.unique()) == len(everything)
    assert len(everything) == 600 or not PARTITIONERS[name].complete
    assert all(len(part) >= request["min_examples"] and part.equal(part.sort().values) for part in parts)


@pytest.mark.parametrize("name", FLOWER)
def test_no_global_generator_matters_or_moves_and_nothing_is_printed(name: str, capfd: Any) -> None:
    first = cut(name)
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), repr(np.random.get_state(legacy=True)), torch.get_rng_state()
    assert all(map(torch.equal, first, cut(name)))
    assert random.getstate() == before[0]
    assert repr(np.random.get_state(legacy=True)) == before[1]
    assert torch.get_rng_state().equal(before[2])
    assert capfd.readouterr() == ("", "")


def test_iid_shares_differ_by_at_most_one_example_and_are_mixed() -> None:
    parts = cut("flwr-iid", num_clients=7)
    assert sorted({len(part) for part in parts}) == [85, 86]
    assert class_counts(parts) == [10] * 7


def test_examples_of_a_class_are_mixed_before_they_are_cut() -> None:
    """A data set sorted by its writers must not give the first writers to the first client."""
    parts = cut("flwr-dirichlet", alpha=1000.0)
    assert all(len(GROUPS[part].unique()) > 20 for part in parts)


def test_a_lower_alpha_gives_more_skew() -> None:
    def skew(alpha: float) -> float:
        parts = cut("flwr-dirichlet", alpha=alpha, min_examples=1)
        return sum(float(LABELS[part].bincount().max()) / len(part) for part in parts)

    assert skew(0.3) > skew(3.0) > skew(300.0)


@pytest.mark.parametrize("labels_per_client", [1, 2, 10])
def test_a_client_sees_as_many_classes_as_asked_for(labels_per_client: int) -> None:
    assert class_counts(cut("labels", num_clients=10, labels_per_client=labels_per_client)) == [labels_per_client] * 10


def test_the_first_class_of_a_client_is_its_own_number() -> None:
    parts = cut("labels", num_clients=10, labels_per_client=1)
    assert [int(LABELS[part][0]) for part in parts] == list(range(10))


def test_a_class_that_nobody_has_goes_to_nobody() -> None:
    parts = cut("labels", num_clients=3, labels_per_client=1)
    assert sum(map(len, parts)) == 180


def test_sizes_are_skewed_and_labels_are_not() -> None:
    parts = cut("quantity", alpha=0.5, num_clients=5)
    sizes = sorted(map(len, parts))
    assert sizes[-1] > 2 * sizes[0]
    shares = LABELS[parts[[len(part) for part in parts].index(sizes[-1])]].bincount() / sizes[-1]
    assert float(shares.max()) < 0.2


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("labels", {"labels_per_client": 11}, r"labels_per_client must be in \[1, 10\].*got 11"),
        (
            "labels",
            {"labels": torch.arange(600).clamp(max=9), "num_clients": 20},
            "labels: some class has fewer examples than clients",
        ),
        ("labels", {"min_examples": 90}, r"the partition labels gives client \d \d+ of at least 90 examples"),
        ("quantity", {"alpha": 0.001}, "no quantity partition in 1000 draws: some client always had fewer than 5"),
        (
            "flwr-dirichlet",
            {"alpha": 0.01, "num_clients": 50},
            "flwr-datasets drew 11 times, and some client always had fewer than 5",
        ),
    ],
)
def test_what_cannot_be_is_one_clear_line(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        cut(name, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FLOWER)
def test_a_missing_package_says_which_extra_brings_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets.partitioner", None)
    with pytest.raises(DataError, match=r"needs flwr-datasets: pip install 'spatl\[data\]'; dirichlet, iid and"):
        cut(name)
