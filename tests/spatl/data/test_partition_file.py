"""Partitions that a file says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spatl.config.loading import parse_config
from spatl.data import partition
from spatl.data.partition_file import read_partition
from spatl.errors import ConfigError, DataError


def written(directory: Path, content: Any, *, suffix: str) -> Path:
    """The file with a client for each example, null for none."""
    path = directory / f"owners{suffix}"
    lines = (f"{index},{'' if client is None else client}" for index, client in enumerate(content))
    path.write_text("\n".join(["index,client", *lines]) if suffix == ".csv" else json.dumps(content))
    return path


@settings(max_examples=30, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 3), min_size=8, max_size=30).map(lambda found: [0, 1, 2, 3, *found]),
    form=st.sampled_from(["list", "object", ".csv"]), named=st.booleans(), order=st.randoms(use_true_random=False),
)  # fmt: skip
def test_every_form_gives_each_client_what_the_file_says(
    numbers: list[int], form: str, named: bool, order: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    clients: list[Any] = [f"hospital {number}" for number in numbers] if named else list(numbers)
    clients[-1] = None
    directory = tmp_path_factory.getbasetemp()
    if form == "object":
        entries = [(str(index), client) for index, client in enumerate(clients)]
        order.shuffle(entries)
        path = directory / "owners.json"
        path.write_text(json.dumps(dict(entries)))
    else:
        path = written(directory, clients, suffix=".json" if form == "list" else form)
    found = read_partition(path, num_examples=len(clients), num_clients=4)
    assert found.owners.tolist() == [*numbers[:-1], -1]
    assert found.names == (tuple(f"hospital {number}" for number in range(4)) if named else ())


def test_numbers_that_are_ids_name_clients(tmp_path: Path) -> None:
    """They are in the order of the numbers."""
    path = written(tmp_path, [1041, 7, 1041, 88], suffix=".csv")
    found = read_partition(path, num_examples=4, num_clients=3)
    assert (found.owners.tolist(), found.names) == ([2, 0, 2, 1], ("7", "88", "1041"))


def test_the_partitioner_gives_out_what_the_file_says(tmp_path: Path) -> None:
    path = written(tmp_path, [1, 0, None, 1], suffix=".json")
    parts = partition(
        torch.zeros(4, dtype=torch.int64), name="file", num_clients=2, seed=1, alpha=1.0, labels_per_client=1,
        min_examples=1, path=str(path),
    )  # fmt: skip
    assert [part.tolist() for part in parts] == [[1], [0, 3]]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("0,0\n1,1\n3,0", "says nothing of 1 of 4 training examples, the first of them 2"),
        ("0,0\n1,1\n2,0\n3,0\n1,0", "line 5: an example goes to one client, and 1 stands there twice, first in line 2"),
        ("-1,0", "line 1: index must be one of 4 training examples, from 0 to 3, got '-1'"),
        ("0,0\n4,1", "line 2: index must be one of 4 training examples, from 0 to 3, got '4'"),
        ("0,0\n1,0\n2,0\n3,0", "gives no example to 1 of 2 clients, 1"),
        ("0,0\n1,1\n2,2\n3,0", "names 3 clients, 0, 1, 2, and partition.num_clients is 2: make it 3"),
        ("0,-1", "line 1: a client must be a number from 0, or a name, got '-1'"),
        ("zero,0", "index must be one of 4"),
        ("0,0,0", "line 1: expected index,client, got '0,0,0'"),
        ('0,"a', "is no CSV: unexpected end of data"),
        ([0, 1, 0], "lists the clients of 3 examples, there are 4 for training"),
        ([0, 1, 0, 1.5], "place 3: a client must be a number from 0, or a name, got 1.5"),
        ([0, 1, 0, True], "place 3: a client must be a number from 0, or a name, got True"),
        ([0, 1, 0, "a\nb"], "place 3: a client must be"),
        ([0, 1, 0, {"a": 1}], "place 3: a client must be"),
        ("json: {", "is no JSON"),
        ("json: 3", "must hold an object from index to client, or a list of clients"),
        ('json: {"0": 1, "0": 0}', "entry '0': an example goes to one client, and 0 stands there twice"),
        ("json: \udcff", "is no text in UTF-8"),
    ],
)
def test_what_is_no_partition_is_answered_in_one_line(tmp_path: Path, content: Any, told: str) -> None:
    is_json = not isinstance(content, str) or content.startswith("json: ")
    path = tmp_path / f"owners{'.json' if is_json else '.csv'}"
    text = content.removeprefix("json: ") if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(DataError) as caught:
        read_partition(path, num_examples=4, num_clients=2)
    assert told in str(caught.value)
    assert str(caught.value).startswith(f"partition.path: {path}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_of_another_kind_is_answered_in_one_line(tmp_path: Path) -> None:
    for name, told in (("nowhere.csv", "cannot be read: No such file"), ("owners.txt", "must end in .csv or .json")):
        (tmp_path / "owners.txt").write_text("0,0")
        with pytest.raises(DataError, match=told):
            read_partition(tmp_path / name, num_examples=1, num_clients=1)


def test_a_config_without_the_file_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="name: file needs path"):
        parse_config({"partition": {"name": "file"}})
