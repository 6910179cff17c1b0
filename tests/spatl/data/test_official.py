"""Splits that a data set came with stay what they are, and every client is tested on classes like its own."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config
from spatl.data import Dataset, client_data, partition
from spatl.data.dataset import SPLITS
from spatl.data.official import training_indices, with_official
from spatl.errors import DataError
from spatl.rounds.client_data import load_clients


def published(num_train: int, num_validation: int, num_test: int, *, groups: bool = False) -> Dataset:
    """Images that hold their own index; four classes, and three owners."""
    number = num_train + num_validation + num_test
    splits = torch.tensor([0] * num_train + [1] * num_validation + [2] * num_test)
    splits = splits[torch.randperm(number, generator=torch.Generator().manual_seed(5))]
    indices = torch.arange(number)
    return Dataset(
        "published", indices.float().reshape(-1, 1, 1, 1), indices % 4, num_classes=4,
        groups=indices % 3 if groups else None, splits=splits,
    )  # fmt: skip


def parts_of(dataset: Dataset, name: str, num_clients: int, seed: int = 1) -> tuple[torch.Tensor, ...]:
    dealt = training_indices(dataset)
    groups = None if dataset.groups is None else dataset.groups[dealt]
    parts = partition(
        dataset.targets[dealt], name=name, num_clients=num_clients, seed=seed, alpha=0.5, labels_per_client=2,
        min_examples=4, groups=groups,
    )  # fmt: skip
    return with_official(dataset, [dealt[part] for part in parts], seed=seed, by_owner=name == "natural")


@pytest.mark.slow
@given(
    num_validation=st.sampled_from([0, 40]), num_test=st.sampled_from([0, 60]), seed=st.integers(0, 1000),
    name=st.sampled_from(["iid", "dirichlet"]),
)  # fmt: skip
def test_each_example_stays_in_its_split_and_goes_to_one_client(
    num_validation: int, num_test: int, seed: int, name: str
) -> None:
    dataset = published(200, num_validation, num_test)
    parts = parts_of(dataset, name, 5, seed)
    assert sorted(index for part in parts for index in part.tolist()) == list(range(len(dataset)))
    for client, part in enumerate(parts):
        data = client_data(dataset, part, client=client, seed=seed, validation_fraction=0.2, test_fraction=0.2)
        found = {split: getattr(data, split).inputs.flatten().long() for split in ("train", "validation", "test")}
        assert sorted(index for each in found.values() for index in each.tolist()) == part.tolist()
        for split, number in (("validation", num_validation), ("test", num_test)):
            expected = SPLITS.index(split) if number else 0
            assert set(dataset.splits[found[split]].tolist()) == {expected}
        assert set(dataset.splits[found["train"]].tolist()) == {0}


def test_clients_are_tested_on_their_own_mix_of_classes() -> None:
    """Class shares of a client's test examples are those of its training examples, as far as whole numbers go."""
    dataset = published(800, 0, 400)
    of_class = [dataset.targets[dataset.splits == split].bincount(minlength=4).numpy() for split in (0, 2)]
    for part in parts_of(dataset, "dirichlet", 4):
        is_test = dataset.splits[part] == 2
        train, test = (dataset.targets[part[kind]].bincount(minlength=4).numpy() for kind in (~is_test, is_test))
        assert np.abs(test - train * of_class[1] / of_class[0]).max() < 2
        assert not test[train == 0].any()


def test_owners_keep_their_own() -> None:
    dataset = published(90, 0, 60, groups=True)
    parts = parts_of(dataset, "natural", 3)
    assert sorted(index for part in parts for index in part.tolist()) == list(range(150))
    assert [set(dataset.groups[part].tolist()) for part in parts] == [{0}, {1}, {2}]


def test_no_client_goes_without_as_long_as_there_are_enough() -> None:
    """Nine clients of 4 and one of 164 examples: of 20 for testing, the small ones are owed half a one each."""
    dataset = published(200, 0, 20)
    training = training_indices(dataset)
    cuts = [*range(0, 37, 4), len(training)]
    parts = with_official(
        dataset, [training[a:b] for a, b in pairwise(cuts)], seed=3, by_owner=False
    )  # fmt: skip
    assert min(int((dataset.splits[part] == 2).sum()) for part in parts) >= 1
    assert sum(int((dataset.splits[part] == 2).sum()) for part in parts) == 20


def test_a_data_set_without_splits_is_dealt_out_as_before() -> None:
    dataset = Dataset("plain", torch.zeros(12, 1, 1, 1), torch.arange(12) % 2, num_classes=2)
    assert training_indices(dataset).tolist() == list(range(12))
    parts = (torch.tensor([0, 3]), torch.tensor([1]))
    assert with_official(dataset, parts, seed=1, by_owner=False) == parts


def test_owners_without_training_examples_are_named(tmp_path: Path) -> None:
    """Two owners have rows of both splits, a third of the test split alone."""
    rows = [f"{n},{n % 2},{owner},{split}" for n, (owner, split) in enumerate(
        [("ann", "train")] * 6 + [("bob", "train")] * 6 + [("bob", "test")] * 2 + [("cid", "test")] * 3
    )]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join(["a,y,who,part", *rows]) + "\n")

    def config_of(num_clients: int) -> ExperimentConfig:
        options = {"path": str(tmp_path / "t.csv"), "target": "y", "owner": "who", "split": "part"}
        return parse_config({
            "data": {"name": "table", "options": options}, "model": {"name": "mlp"},
            "partition": {"name": "natural", "num_clients": num_clients, "min_examples": 1},
        })  # fmt: skip

    dataset, parts = load_clients(config_of(2))
    assert [len(part) for part in parts] == [6, 8]
    assert dataset.notes == ("table: 1 owners have no training examples, and are no clients: cid",)
    with pytest.raises(DataError, match=r"2 of 2 natural owners .*; 1 owners have no training .* no clients: cid"):
        load_clients(config_of(3))
