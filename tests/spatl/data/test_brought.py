"""Examples as users bring them: arrays of any shape, PyTorch's data sets, one for each client."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from spatl.data import Dataset
from spatl.data.brought import dataset_of
from spatl.errors import DataError
from spatl.tensors.inputs import NamedInputs

SERIES = np.random.default_rng(1).normal(size=(6, 2, 5)).astype(np.float32)
LABELS = np.arange(6) % 2


def as_list(values: torch.Tensor | None) -> list[int] | None:
    return None if values is None else values.tolist()


def brought(found: object, **more: Any) -> Dataset:
    return dataset_of(found, name="mine", where="the loader", **more)


def test_a_mapping_is_taken_as_it_is() -> None:
    found = brought({
        "inputs": SERIES, "targets": LABELS, "groups": list("aabbcc"), "splits": ["train"] * 5 + ["test"],
        "class_names": ["calm", "wild"],
    })  # fmt: skip
    assert torch.equal(found.images, torch.from_numpy(SERIES))
    assert (found.class_names, found.scale) == (("calm", "wild"), "channel")
    assert as_list(found.groups) == [0, 0, 1, 1, 2, 2]
    assert as_list(found.splits) == [0, 0, 0, 0, 0, 2]


def test_a_pair_of_images_is_read_as_images_and_other_pairs_as_they_are() -> None:
    assert brought((SERIES, LABELS)).images.shape == (6, 1, 2, 5)
    table = brought((SERIES[:, 0], LABELS))
    assert (table.images.shape, table.scale) == ((6, 5), "feature")
    assert brought((torch.from_numpy(SERIES[:, 0]).half(), torch.from_numpy(LABELS))).images.dtype == torch.float32


def test_whole_numbers_are_tokens_but_for_pixels() -> None:
    tokens = brought((np.arange(12).reshape(6, 2), LABELS))
    assert (tokens.images.dtype, tokens.scale) == (torch.int64, "none")
    assert tokens.sizes() == {"num_classes": 2, "input_shape": (2,), "num_tokens": 12, "length": 2}
    assert brought({"inputs": SERIES.astype(np.uint8), "targets": LABELS}).images.dtype == torch.float32


def test_several_inputs_have_names() -> None:
    found = brought(({"words": np.ones((6, 3), dtype=int), "length": np.ones((6, 1))}, LABELS))
    assert isinstance(found.inputs, NamedInputs)
    assert found.sizes() == {"num_classes": 2, "input_shapes": {"words": (3,), "length": (1,)}}
    assert len(found.inputs) == 6
    some = found.inputs[torch.tensor([1, 4])]
    assert (len(some), {**some}.keys()) == (2, {"words", "length"})
    assert isinstance(some, NamedInputs)
    assert {name: tuple(each.shape) for name, each in some.items()} == {"words": (2, 3), "length": (2, 1)}


def test_a_torch_data_set_is_read_item_by_item() -> None:
    found = brought(TensorDataset(torch.from_numpy(SERIES[:, 0]), torch.from_numpy(LABELS)))
    assert torch.equal(found.images, torch.from_numpy(SERIES[:, 0]))
    assert found.targets.tolist() == LABELS.tolist()


@pytest.mark.parametrize("named", [False, True])
def test_one_for_each_client_keeps_whose_they_are(named: bool) -> None:
    parts: list[Any] = [
        (SERIES[:1, 0], LABELS[:1]),
        {"inputs": SERIES[1:3, 0], "targets": LABELS[1:3]},
        TensorDataset(torch.from_numpy(SERIES[3:, 0]), torch.from_numpy(LABELS[3:])),
    ]
    found = brought(dict(zip("xyz", parts, strict=True)) if named else parts)
    assert torch.equal(found.images, torch.from_numpy(SERIES[:, 0]))
    assert as_list(found.groups) == [0, 1, 1, 2, 2, 2]


def of_words(classes: tuple[str, ...], labels: list[int], **more: Any) -> Dataset:
    inputs = torch.arange(2 * len(labels)).reshape(-1, 2)
    return Dataset("words", inputs, torch.tensor(labels), num_classes=len(classes), class_names=classes, **more)


def test_what_a_data_set_of_each_client_says_is_kept() -> None:
    """Classes that no example has, in their order, published splits, and how many tokens there are."""
    splits = torch.tensor([0, 2])
    found = brought({
        "ann": of_words(("cat", "emu"), [0, 0], splits=splits, num_tokens=50),
        "bob": of_words(("bat", "cat"), [1, 0], splits=splits, num_tokens=40),
    })  # fmt: skip
    assert found.class_names == ("bat", "cat", "emu")
    assert found.targets.tolist() == [1, 1, 1, 0]
    assert as_list(found.splits) == [0, 2, 0, 2]
    assert found.num_tokens == 50
    assert found.group_names == ("ann", "bob")


def test_a_data_set_of_each_client_has_the_same_outputs() -> None:
    """Of next tokens one may know more of them than another."""

    def sequences(number: int) -> Dataset:
        tokens = torch.arange(6).reshape(2, 3) % number
        return Dataset("tokens", tokens, tokens, num_classes=number, num_tokens=number, task="next-token")

    found = brought([sequences(3), sequences(7)], task="next-token")
    assert (found.num_classes, found.num_tokens) == (7, 7)


VALUES = Dataset("v", torch.zeros(2, 3), torch.zeros(2, 1), num_classes=1, class_names=("rent",), task="regression")


class Raises:
    def __len__(self) -> int:
        return 3

    def __getitem__(self, place: int) -> Any:
        return (SERIES[place], 0, 1)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "the loader must return a spatl.data.Dataset, a pair .*, got NoneType"),
        ((SERIES, LABELS, 1), "client 0: expected inputs and targets, got an array"),
        ({"inputs": SERIES}, "a mapping with inputs must have targets too"),
        ({"inputs": SERIES, "targets": LABELS, "label": 1}, "may have inputs, targets, .* got 'label'"),
        ({"inputs": SERIES, "targets": LABELS[:5]}, "targets must be 6, one per example, got 5"),
        ({"inputs": SERIES[:, 0, 0], "targets": LABELS}, r"numbers \[N, ...\], got float32 \[6\]; .* give \[N, 1\]"),
        ({"inputs": SERIES * np.nan, "targets": LABELS}, "must be finite and at most 1e.30 in size, got 6 of 6 exam"),
        ({"inputs": [[1, 2], [3]], "targets": [0, 1]}, "examples must all have one shape; pad or cut what has unequal"),
        ({"inputs": -np.ones((6, 2), dtype=int), "targets": LABELS}, "tokens, which are 0 or more, got -1; give other"),
        ({"inputs": SERIES, "targets": LABELS, "groups": [1.5] * 6}, r"groups must be whole numbers or texts \[6\]"),
        ({"inputs": SERIES, "targets": LABELS, "splits": ["train"] * 5 + ["odd"]}, "splits must be train, validation"),
        ({"inputs": SERIES, "targets": LABELS * 0.5}, "labels must be whole numbers from 0, or texts"),
        ({"inputs": {"a b": SERIES}, "targets": LABELS}, "several inputs must have names as of Python's variables"),
        ({"inputs": {"a": SERIES, "b": SERIES[:5]}, "targets": LABELS}, "all inputs must have one length, got a float"),
        (
            [(SERIES, LABELS), (SERIES[:, :1], LABELS)],
            r"inputs of one shape and kind, got float32 \[2, 5\] of",
        ),
        ([(SERIES, LABELS), (SERIES, LABELS / 2)], "all clients must have targets of one kind"),
        ([SERIES], "client 0: "),
        (
            [(SERIES, LABELS[:5]), (SERIES[:5], LABELS)],
            r"client '0' must have as many targets as inputs, got 6 inputs and targets \[5\]",
        ),
        ({"a": (SERIES, LABELS), "b": (SERIES[:0], LABELS[:0])}, "client 'b' has no example; leave it out, or give it"),
        ({1: (SERIES, LABELS), "1": (SERIES, LABELS)}, "two clients have the same name, of 1, 1"),
        ([of_words(("a", "b"), [0, 1]), (SERIES, LABELS)], "of 2 clients 1 have a Dataset; give all of them one, or"),
        ([VALUES, VALUES], "client '0' has targets for regression, the task is classification"),
        (
            [of_words(("a", "b"), [0, 1], splits=torch.tensor([0, 2])), of_words(("a", "b"), [0, 1])],
            "some clients' examples have splits, those of 1 have none",
        ),
        (Raises(), "each example must be a pair of input and target, got a tuple of 3 values at 0"),
        ({"inputs": np.array([[object()]]), "targets": [0]}, "expected numbers or texts, got object"),
    ],
)
def test_what_does_not_fit_is_one_line(found: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        brought(found)
    assert "\n" not in str(caught.value)


def test_data_sets_of_clients_whose_outputs_have_other_names_are_one_line() -> None:
    other = replace(VALUES, class_names=("price",))
    with pytest.raises(DataError, match="must have the same outputs by name, got client '0': rent; client '1': price"):
        brought([VALUES, other], task="regression")


def test_a_mapping_of_each_client_may_say_more_and_leave_next_tokens_to_their_shift() -> None:
    parts = [{"inputs": SERIES[:2], "targets": LABELS[:2], "splits": ["train", "test"]}] * 2
    found = brought(parts)
    assert as_list(found.splits) == [0, 2, 0, 2]
    assert as_list(found.groups) == [0, 0, 1, 1]
    tokens = brought({"ann": {"inputs": np.arange(6).reshape(2, 3)}}, task="next-token")
    assert (tokens.inputs.tolist(), tokens.targets.tolist()) == ([[0, 1], [3, 4]], [[1, 2], [4, 5]])


def test_a_class_of_test_examples_alone_is_told() -> None:
    found = brought({"inputs": SERIES, "targets": list("aabbbc"), "splits": ["train"] * 5 + ["test"]})
    assert found.remarks() == ("mine: 1 classes are in no training example: c",)


def test_a_token_beyond_all_vocabularies_is_refused_before_each_gets_a_name() -> None:
    tokens = np.array([[1, 2], [3, 5_000_000_000]])
    with pytest.raises(DataError, match=r"tokens must be below 1,000,000, got 5,000,000,000 \(are these ids\?\)"):
        brought((tokens, tokens), task="next-token")


def test_the_order_in_which_classes_are_named_is_kept_whoever_has_which() -> None:
    """One data set for each client, none of which has all of the classes, and labels as texts in one array."""
    clients = {"ann": of_words(("low", "middle"), [0, 1]), "bob": of_words(("middle", "high"), [1, 0])}
    found = brought(clients)
    assert found.class_names == ("low", "middle", "high")
    assert found.targets.tolist() == [0, 1, 2, 1]
    texts = {"inputs": np.zeros((3, 2)), "targets": ["low", "high", "low"], "class_names": ["low", "middle", "high"]}
    assert brought(texts).targets.tolist() == [0, 2, 0]
    assert brought(texts).class_names == ("low", "middle", "high")


@pytest.mark.parametrize(
    ("names", "line"),
    [(["a", "a", "b"], "class_names must differ, got 'a' twice"), ([1, 2, 3], "class_names must be texts"),
     ("abc", "class_names must be texts")],
)  # fmt: skip
def test_names_of_classes_that_are_none_are_one_line(names: Any, line: str) -> None:
    with pytest.raises(DataError, match=line):
        brought({"inputs": np.zeros((3, 2)), "targets": [0, 1, 2], "class_names": names})
