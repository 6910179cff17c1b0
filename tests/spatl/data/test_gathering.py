"""What users bring that cannot be had as numbers: one line, with what came and why."""

from typing import Any

import numpy as np
import pytest
import torch

from spatl.data.brought import dataset_of
from spatl.errors import DataError

INPUTS, LABELS = np.arange(12, dtype=np.float32).reshape(6, 2), np.arange(6) % 2
TOKENS = np.arange(12).reshape(6, 2)


class Items:
    """Six pairs, of which one may be odd."""

    def __init__(self, odd: Any = None, error: Exception | None = None, length_error: Exception | None = None) -> None:
        self.odd, self.error, self.length_error = odd, error, length_error

    def __len__(self) -> int:
        if self.length_error is not None:
            raise self.length_error
        return 6

    def __getitem__(self, place: int) -> Any:
        if place == 4 and self.error is not None:
            raise self.error
        return self.odd if place == 4 and self.odd is not None else ({"a": INPUTS[place]}, LABELS[place])


def line(found: object, task: Any = "classification") -> str:
    with pytest.raises(DataError) as caught:
        dataset_of(found, name="mine", where="mine", task=task)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (Items(error=OSError("the disk is gone")), "mine: example 4 cannot be had: OSError: the disk is gone"),
        (
            Items(length_error=RuntimeError("no idea")),
            "mine: its length cannot be had: RuntimeError: no idea",
        ),
        (Items(odd=({"b": INPUTS[4]}, 1)), "mine: all examples must have the inputs a, got b at 4"),
        (Items(odd=(INPUTS[4], 1)), "mine: all examples must have the inputs a, got an array [2] at 4"),
        ((torch.from_numpy(INPUTS).to_sparse(), LABELS), "mine: numbers must be an array or a dense tensor: TypeError"),
        ((torch.zeros(6, 2, device="meta"), LABELS), "mine: numbers must be an array or a dense tensor: NotImpl"),
        ((np.ma.masked_array(INPUTS, INPUTS > 5), LABELS), "mine: some values are masked, as missing ones"),
        ((INPUTS, np.ma.masked_array(LABELS, LABELS > 0)), "mine: some values are masked"),
        ((TOKENS.astype(np.uint64) + 2**63, LABELS), "tokens must be below 1,000,000, got 9,223,372,036,854,775,819"),
        (INPUTS, "a list or mapping of one of these for each client, got an array [6, 2]"),
        ("data.csv", "a list or mapping of one of these for each client, got str"),
        (
            {"x": INPUTS, "y": LABELS},
            "client 'x': expected inputs and targets, got an array [6, 2]; those of all",
        ),
        ((INPUTS, LABELS, LABELS), "client 0: expected inputs and targets, got an array [6, 2]; those of all clients"),
        ({"inputs": TOKENS, "targets": LABELS, "num_tokens": "9"}, "num_tokens must be a whole number from 1, got '9'"),
        ({"inputs": TOKENS, "targets": LABELS, "num_tokens": 9.0}, "num_tokens must be a whole number from 1, got 9.0"),
        ({"inputs": TOKENS, "targets": LABELS, "num_tokens": 0}, "num_tokens must be a whole number from 1, got 0"),
    ],
)
def test_what_cannot_be_had_is_one_line(found: object, told: str) -> None:
    assert told in line(found)


def test_next_tokens_beyond_what_a_whole_number_holds_are_not_taken_for_negative_ones() -> None:
    assert "got 9,223,372" in line((TOKENS, TOKENS.astype(np.uint64) + 2**63), "next-token")


def test_names_of_other_outputs_than_there_are_are_counted() -> None:
    found = {"inputs": INPUTS, "targets": INPUTS, "class_names": ["a"]}
    assert line(found, "regression") == "mine: class_names must be 2, one for each output, got 1"


def test_an_array_with_a_mask_that_hides_nothing_is_an_array() -> None:
    found = dataset_of((np.ma.masked_array(INPUTS), LABELS), name="mine", where="mine")
    assert torch.equal(found.images, torch.from_numpy(INPUTS))


def test_a_number_of_tokens_may_be_numpys() -> None:
    found = dataset_of({"inputs": TOKENS, "targets": LABELS, "num_tokens": np.int64(20)}, name="mine", where="mine")
    assert found.num_tokens == 20
    assert type(found.num_tokens) is int
