"""Tokens: how many there are, as a config says it, as data have them, and as devices agree on it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from spatl.config.loading import parse_config
from spatl.data import Dataset
from spatl.data.bounds import LARGEST_NUM_CLASSES, MOST_UNSTATED, as_told, names_of
from spatl.data.brought import dataset_of
from spatl.data.labels import MAX_CLASSES
from spatl.data.own import Agreement, Description, agree, alone, describe, fit
from spatl.data.tokens import with_vocabulary
from spatl.errors import DataError
from spatl.json_files import to_json

GPT2 = 50_257


def sentences(highest: int, *, task: str = "next-token", num_tokens: int | None = None) -> Dataset:
    """Three sequences of five tokens, the highest of them given."""
    tokens = np.arange(15).reshape(3, 5)
    tokens[0, 0] = highest
    targets = tokens if task == "next-token" else np.arange(3) % 2
    found = {"inputs": tokens, "targets": targets}
    return dataset_of(found | ({} if num_tokens is None else {"num_tokens": num_tokens}), name="mine", where="mine",
                      task=task)  # fmt: skip


def told(highest: int, **options: object) -> Description:
    """What a device tells that has such sequences, as it comes in."""
    dataset = sentences(highest, **options)
    return Description.from_bytes(describe(dataset, dataset.inputs).to_bytes())


def test_a_large_vocabulary_is_told_as_one_number_and_a_small_one_by_its_names():
    """50,257 names of numbers would be some 400 kB in each registration, and again in each config."""
    large, small = describe(sentences(GPT2 - 1), torch.zeros(1, 5).long()), described(40)
    assert json.loads(large.to_bytes())["classes"] == GPT2
    assert len(large.to_bytes()) < 250
    assert json.loads(small.to_bytes())["classes"] == [str(number) for number in range(41)]
    assert Description.from_bytes(large.to_bytes()) == large


def described(highest: int) -> Description:
    dataset = sentences(highest)
    return describe(dataset, dataset.inputs)


def test_names_of_their_own_are_never_taken_for_numbers():
    names = [f"piece {number}" for number in range(LARGEST_NUM_CLASSES + 1)]
    assert as_told(names) == names
    for number in (LARGEST_NUM_CLASSES, MAX_CLASSES + 1, 2**70, -1, True, 20_000.0):
        assert names_of(number) is number
    assert names_of(LARGEST_NUM_CLASSES + 1) == tuple(map(str, range(LARGEST_NUM_CLASSES + 1)))


@pytest.mark.parametrize("number", [32_000, GPT2])
def test_devices_agree_on_a_large_vocabulary_and_the_config_says_it_in_a_line(number):
    agreement, misfits = agree({0: told(number - 1), 1: told(700)})
    assert (len(agreement.classes), agreement.num_tokens, misfits) == (number, number, {})
    values = json.loads(to_json(agreement.told()))
    assert values["classes"] == number
    config = parse_config({"partition": {"name": "own"}, "data": {"name": "npz", "agreed": values}})
    assert f"classes: {number}\n" in config.to_yaml()
    assert config.data.agreed.agreement() == agreement
    assert parse_config(json.loads(config.to_json())) == config
    assert fit(sentences(number - 1), agreement).num_classes == number


@pytest.mark.parametrize("task", ["next-token", "classification"])
def test_what_a_config_says_is_what_all_have_and_who_has_more_is_left_out_by_name(task):
    devices = {0: told(99, task=task), 1: told(100, task=task), 2: told(40, task=task)}
    agreement, misfits = agree(devices, num_tokens=100)
    assert agreement.num_tokens == 100
    assert misfits == {1: "it has 101 tokens, there are 100 (data.num_tokens)"}


@pytest.mark.parametrize("task", ["next-token", "classification"])
def test_where_nothing_says_how_many_there_are_nobody_makes_the_network_of_all_larger_than_that(task):
    agreement, misfits = agree({0: told(99, task=task), 1: told(MOST_UNSTATED, task=task)})
    assert agreement.num_tokens == 100
    assert misfits == {
        1: "it has 65537 tokens, clients may have 65536 where data.num_tokens does not say how many there are: set it"
    }
    assert agree({0: told(MOST_UNSTATED - 1, task=task)})[0].num_tokens == MOST_UNSTATED
    with pytest.raises(DataError, match=r"^it has 65537 tokens, clients may have 65536"):
        alone(told(MOST_UNSTATED, task=task))
    assert alone(told(MOST_UNSTATED, task=task), num_tokens=200_000).num_tokens == 200_000


def test_a_number_of_outputs_is_no_vocabulary_of_another_task():
    content = json.loads(told(GPT2 - 1).to_bytes())
    for task in ("classification", "regression", "multi-label"):
        with pytest.raises(DataError, match="expected 1 to 10000 classes, got 50257"):
            Description.from_bytes(json.dumps(content | {"task": task}).encode())
    with pytest.raises(DataError, match="must have lists of classes"):
        Description.from_bytes(json.dumps(content | {"classes": MAX_CLASSES + 1}).encode())
    with pytest.raises(DataError, match="at most 16777216 tokens"):
        Description.from_bytes(json.dumps(content | {"num_tokens": 1 << 40}).encode())


def test_names_that_no_message_holds_are_refused_before_they_are_read():
    named = replace(described(9), classes=tuple(f"{number:060}" for number in range(80_000)))
    with pytest.raises(DataError, match="bytes, at most 4194304 are read: give outputs shorter names, or tokens no"):
        Description.from_bytes(named.to_bytes())


def test_a_vocabulary_that_the_data_do_not_fill_has_an_output_for_each_token_all_the_same():
    found = with_vocabulary(sentences(40), 100)
    assert (found.num_tokens, found.num_classes, found.class_names[-1]) == (100, 100, "99")
    of_classes = with_vocabulary(sentences(40, task="classification"), 100)
    assert (of_classes.sizes()["num_tokens"], of_classes.num_classes) == (100, 2)
    assert describe(of_classes, of_classes.inputs).num_tokens == 100


def test_what_a_loader_says_of_its_tokens_is_told_by_a_device():
    assert told(40, num_tokens=80).num_tokens == told(40, task="classification", num_tokens=80).num_tokens == 80


@pytest.mark.parametrize(
    ("dataset", "line"),
    [
        (sentences(40), "data.num_tokens is 20, so that tokens must lie in [0, 20), but 'mine' has 40"),
        (replace(sentences(14), class_names=tuple("abcdefghijklmno")), "'mine' has names for 15 tokens"),
        (dataset_of((np.zeros((3, 2)), [0, 1, 1]), name="mine", where="mine"), "are no tokens, which are whole numb"),
    ],
    ids=["more", "names", "no tokens"],
)
def test_what_is_not_as_a_config_says_is_one_line(dataset, line):
    with pytest.raises(DataError) as caught:
        with_vocabulary(dataset, 20)
    assert line in str(caught.value)


def test_a_token_that_nobody_had_when_all_agreed_is_one_line():
    """A device that comes later, or a test file of the server's."""
    agreement: Agreement = agree({0: told(40, task="classification"), 1: told(20, task="classification")})[0]
    with pytest.raises(DataError, match="a token of the examples here is 41, the clients have agreed on 41 tokens"):
        fit(sentences(41, task="classification"), agreement)
