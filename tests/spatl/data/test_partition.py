"""Cutting a data set into clients."""

import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spatl.data import PARTITIONERS, partition
from spatl.errors import DataError

LABELS = torch.arange(1000) % 10
GROUPS = torch.arange(1000) // 100
BUILT_IN = ("dirichlet", "iid")
IID_SEED_1 = [[1, 5, 16, 19], [2, 3, 7, 8], [0, 4, 6, 9]]
DIRICHLET_SEED_1 = [[0, 1, 4, 8], [3, 13, 18, 20], [2, 5, 6, 7]]


def cut(labels: Tensor = LABELS, **changes: Any) -> tuple[Tensor, ...]:
    settings = {"num_clients": 5, "seed": 1, "alpha": 0.5, "labels_per_client": 2, "min_examples": 10}
    return partition(labels, **{**settings, **changes})


def covers_once(parts: Sequence[Tensor], num_examples: int) -> bool:
    return torch.cat(list(parts)).sort().values.equal(torch.arange(num_examples))


@pytest.mark.slow
@given(
    name=st.sampled_from(BUILT_IN),
    labels=st.lists(st.integers(0, 5), min_size=60, max_size=200).map(torch.tensor),
    num_clients=st.integers(1, 8),
    min_examples=st.integers(1, 3),
    alpha=st.floats(0.5, 100),
    seed=st.integers(0, 2**32),
)
def test_every_example_goes_to_exactly_one_client_and_nobody_gets_too_few(
    name: str, labels: Tensor, num_clients: int, min_examples: int, alpha: float, seed: int
) -> None:
    parts = cut(labels, name=name, num_clients=num_clients, seed=seed, alpha=alpha, min_examples=min_examples)
    assert len(parts) == num_clients
    assert covers_once(parts, len(labels))
    assert all(part.dtype == torch.int64 and len(part) >= min_examples for part in parts)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(PARTITIONERS) - {"own", "file"}))
def test_the_seed_decides(name: str) -> None:
    first, again, other = (cut(name=name, seed=seed, groups=GROUPS) for seed in (1, 1, 2))
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_iid_shares_differ_by_at_most_one_example() -> None:
    sizes = [len(part) for part in cut(name="iid", num_clients=7)]
    assert sorted(sizes) == [142] * 1 + [143] * 6


def skew(alpha: float) -> float:
    """The mean over clients of the share of the client's largest class: 0.1 when every client is like the whole."""
    parts = cut(LABELS.repeat(3), name="dirichlet", num_clients=10, alpha=alpha, min_examples=1)
    return sum(float(LABELS.repeat(3)[part].bincount().max()) / len(part) for part in parts) / len(parts)


def test_a_lower_alpha_gives_more_skew() -> None:
    skews = [skew(alpha) for alpha in (0.1, 0.5, 5.0, 1e6)]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.4
    assert skews[-1] == pytest.approx(0.1, abs=0.01)


def test_a_strong_skew_is_drawn_again_until_the_smallest_client_is_large_enough() -> None:
    parts = cut(name="dirichlet", num_clients=20, alpha=0.2)
    assert min(map(len, parts)) >= 10


def test_a_partition_that_no_draw_finds_is_one_clear_line() -> None:
    with pytest.raises(DataError) as caught:
        cut(name="dirichlet", num_clients=50, alpha=0.001, min_examples=20)
    message = str(caught.value)
    assert "\n" not in message
    assert "no dirichlet partition in 1000 draws" in message
    assert "had 0 of at least 20 examples" in message
    assert "(num_clients=50, alpha=0.001, min_examples=20, N=1000)" in message
    assert message.endswith("raise alpha, or lower num_clients or min_examples")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "dirichlett"},
            r"'dirichlett' \(did you mean 'dirichlet'\?\); known: dirichlet, iid, file, flwr-",
        ),
        ({"num_clients": 0}, "must be at least 1, got 0 and 10"),
        ({"min_examples": 0}, "must be at least 1, got 5 and 0"),
        ({"num_clients": 1001, "min_examples": 1}, "1001 clients with at least 1 .* need 1001 examples, got 1000"),
        ({"num_clients": 101}, "101 clients with at least 10 .* need 1010 examples, got 1000"),
        ({"alpha": 0.0}, r"alpha must be in \[0.001, 1000000\], got 0.0"),
        ({"alpha": float("nan")}, r"alpha must be in \[0.001, 1000000\], got nan"),
        ({"labels": LABELS.float()}, r"labels must be int64 \[N\], got float32 \[1000\]"),
    ],
)
def test_a_mistake_is_answered_at_once_with_what_came_and_what_is_allowed(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        cut(**{"name": "iid", **changes})


def test_the_built_in_partitions_stay_what_they_are() -> None:
    """Devices and servers of one federation may be of different versions of this package."""
    assert [part[:4].tolist() for part in cut(name="iid", num_clients=3)] == IID_SEED_1
    assert [part[:4].tolist() for part in cut(name="dirichlet", num_clients=3)] == DIRICHLET_SEED_1


def test_an_entry_names_settings_that_there_are() -> None:
    known = {"alpha", "labels_per_client", "min_examples", "path"}
    assert all(set(entry.settings) <= known for entry in PARTITIONERS.values())


OWNERS = torch.arange(600) // 25  # 24 of 25 examples each


def owned(groups: Tensor | None = OWNERS, *, num_clients: int) -> tuple[Tensor, ...]:
    return cut(torch.arange(600) % 10, name="natural", groups=groups, num_clients=num_clients, min_examples=5)


def test_a_client_is_one_natural_owner() -> None:
    parts = owned(num_clients=24)
    assert [OWNERS[part].unique().tolist() for part in parts] == [[owner] for owner in range(24)]
    drawn = owned(num_clients=6)
    assert all(len(part) == 25 and len(OWNERS[part].unique()) == 1 for part in drawn)


def test_owners_with_too_few_examples_are_passed_over() -> None:
    groups = torch.repeat_interleave(torch.tensor([7, 8, 9]), torch.tensor([3, 297, 300]))
    assert [len(part) for part in owned(groups, num_clients=2)] == [297, 300]
    with pytest.raises(DataError, match=r"natural: 2 of 3 natural owners have at least 5 examples.*no 3 clients"):
        owned(groups, num_clients=3)


def test_without_owners_there_is_no_natural_partition() -> None:
    with pytest.raises(DataError, match="natural: the data set does not say whose its examples are; femnist does"):
        owned(None, num_clients=3)


def test_natural_owners_need_no_package_and_write_nothing(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    for package in ("datasets", "flwr_datasets", "tqdm"):
        monkeypatch.setitem(sys.modules, package, None)
    assert len(owned(num_clients=24)) == 24
    assert capfd.readouterr() == ("", "")


def test_what_is_each_devices_own_is_not_shared_out() -> None:
    with pytest.raises(DataError, match="no data set is shared out where each device has its own"):
        cut(name="own")
