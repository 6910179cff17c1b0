"""A data set checks itself when made."""

import pytest
import torch

from spatl.data import Dataset
from spatl.errors import DataError

IMAGES, LABELS = torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 1])


def test_its_length_is_the_number_of_labels() -> None:
    assert len(Dataset("tiny", IMAGES, LABELS, num_classes=2)) == 3


@pytest.mark.parametrize(
    ("images", "labels", "num_classes", "message"),
    [
        (IMAGES.double(), LABELS, 2, r"inputs must be float32 or int64 \[N, \.\.\.\].*got float64 \[3, 1, 2, 2\]"),
        (IMAGES[:, 0, 0, 0], LABELS, 2, r"inputs must be float32 .*got float32 \[3\]"),
        (IMAGES[:0], LABELS[:0], 2, r"no empty dimension, got float32 \[0, 1, 2, 2\]"),
        (IMAGES, LABELS[:2], 2, r"labels must be int64 \[3\], one per example, got int64 \[2\]"),
        (IMAGES, LABELS.int(), 2, r"labels must be int64 .*got int32 \[3\]"),
        (IMAGES, LABELS + 1, 2, r"labels must lie in \[0, 2\), got \[1, 2\]"),
        (IMAGES, LABELS - 1, 2, r"labels must lie in \[0, 2\), got \[-1, 0\]"),
        (IMAGES, LABELS * 0, 0, "num_classes must be at least 1, got 0"),
        (IMAGES, LABELS, 3 * 10**9, r"num_classes must be at most 1000000 \(are these ids\?\), got 3000000000"),
        (IMAGES + torch.nan, LABELS, 2, "inputs must be finite, got 3 of 3 examples that are not, .* example 0"),
    ],
)
def test_what_does_not_fit_is_named_with_what_was_expected(
    images: torch.Tensor, labels: torch.Tensor, num_classes: int, message: str
) -> None:
    with pytest.raises(DataError, match=f"data set 'tiny': .*{message}"):
        Dataset("tiny", images, labels, num_classes)


def test_owners_and_names_must_fit_too() -> None:
    dataset = Dataset("tiny", IMAGES, LABELS, num_classes=2, groups=LABELS, class_names=("cat", "dog"))
    assert dataset.groups is LABELS
    with pytest.raises(DataError, match=r"groups must be int64 \[3\], one per example, got int64 \[2\]"):
        Dataset("tiny", IMAGES, LABELS, num_classes=2, groups=LABELS[:2])
    with pytest.raises(DataError, match="class_names must be 2, one per class, got 1"):
        Dataset("tiny", IMAGES, LABELS, num_classes=2, class_names=("cat",))


def test_classes_without_a_name_are_called_by_their_numbers() -> None:
    assert Dataset("tiny", IMAGES, LABELS, num_classes=3).class_names == ("0", "1", "2")


def test_classes_without_an_example_are_named() -> None:
    dataset = Dataset("tiny", IMAGES, LABELS, num_classes=4, class_names=("a", "b", "c", "d"), notes=("read so",))
    assert dataset.remarks() == ("read so", "tiny: 2 of 4 classes have no example: c, d")
    assert Dataset("tiny", IMAGES, LABELS, num_classes=2).remarks() == ()
