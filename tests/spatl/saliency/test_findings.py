"""Findings of one client by hand, and what they may be."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spatl.data import Examples
from spatl.errors import ModelError
from spatl.saliency.filters import main_filters
from spatl.saliency.findings import check_examples, fault_of, features, findings_of
from spatl.saliency.moments import Moments
from tests.support.findings import drawn_findings

LN3 = math.log(3)


class TwoFilters(nn.Module):
    """Images of one number x; two filters of one weight, 1 and 0; their channels times 1 are the logits, x and 0."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1, bias=False)
        self.fc = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1))
            self.fc.weight.copy_(torch.eye(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.conv(images).flatten(1))
        return logits


def test_findings_of_three_examples_by_hand() -> None:
    """Images ln 3, ln 3 and 0 of the classes 0, 1 and 1: the network says 3/4, 3/4 and 1/2 for class 0.

    Losses: -ln 3/4, -ln 1/4 and -ln 1/2. The gradient of a loss by a weight is (p - y) x: of both filters 1/4 ln 3,
    3/4 ln 3 and 0 in size, 1/3 ln 3 in the mean; from it they are 1/12, 5/12 and 4/12 of ln 3 away, and the sum of the
    squares is 42/144 (ln 3)^2. The linear layer reads (x, 0).
    """
    images = torch.tensor([LN3, LN3, 0.0]).reshape(3, 1, 1, 1)
    network = TwoFilters()
    found = findings_of(
        network, Examples(images, torch.tensor([0, 1, 1])), main_filters(network), torch.tensor([1, 1, 0, 1]),
        num_classes=2,
    )  # fmt: skip
    assert found.counts.tolist() == [1, 2]
    assert found.labels.tolist() == [1, 3]
    assert found.correct.tolist() == [1, 0]
    assert found.losses.tolist() == pytest.approx([math.log(4 / 3), math.log(4) + math.log(2)])
    assert found.class_profiles.flatten().tolist() == pytest.approx([LN3 / 4] * 2 + [LN3 * 3 / 8] * 2)
    assert found.prototypes.flatten().tolist() == pytest.approx([LN3, 0, LN3 / 2, 0])
    assert found.moments.count == 3
    assert found.moments.means.tolist() == pytest.approx([LN3 / 3] * 2)
    assert found.moments.squares.tolist() == pytest.approx([LN3**2 * 42 / 144] * 2)
    assert fault_of(found, num_filters=2, num_classes=2) is None


def test_prototypes_of_small_classes_stay_with_the_client() -> None:
    found = replace(drawn_findings(1), counts=torch.tensor([1, 2, 9]), prototypes=torch.ones(3, 4))
    assert found.without_small_classes(2).prototypes.sum(1).tolist() == [0, 4, 4]
    assert found.without_small_classes(1).prototypes.sum(1).tolist() == [4, 4, 4]
    assert found.without_small_classes(None).prototypes.shape == (3, 0)


def test_a_network_without_a_linear_layer_has_no_prototypes() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(5, 1, 2, 2)
    assert features(network, images).shape == (5, 0)
    found = findings_of(network, Examples(images, torch.arange(5) % 3), main_filters(network), torch.arange(3),
                        num_classes=3)  # fmt: skip
    assert found.prototypes.shape == (3, 0)
    assert fault_of(found, num_filters=3, num_classes=3) is None


def test_a_network_of_linear_layers_alone_has_their_filters() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    assert [layer.num_filters for layer in main_filters(network).layers] == [6, 3]
    with pytest.raises(ModelError, match="a layer of the kind linear"):
        main_filters(nn.Flatten())


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 9), st.integers(1, 40))
def test_what_some_network_could_find_has_no_fault(seed: int, filters: int, classes: int, read: int, n: int) -> None:
    found = drawn_findings(seed, num_filters=filters, num_classes=classes, num_features=read, num_examples=n)
    assert fault_of(found, num_filters=filters, num_classes=classes) is None


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("losses", torch.tensor([1.0, float("inf"), 1.0]), "the losses must be finite and at most 1e+30"),
        ("losses", torch.tensor([1.0, -0.1, 1.0]), "the losses must not be below 0"),
        ("counts", torch.tensor([-1, 9, 4]), "the counts must not be below 0"),
        ("counts", torch.tensor([1 << 62, 1 << 62, 1]), "the counts must be finite and at most"),
        ("counts", torch.tensor([12, 0]), "the counts are of shape [2], expected [3]"),
        ("correct", torch.tensor([0, 0, 13]), "more correct predictions than examples"),
        ("class_profiles", torch.zeros(3, 5), "do not have the mean of all profiles"),
        ("class_profiles", torch.full((3, 5), -1.0), "the class profiles must not be below 0"),
        ("class_profiles", torch.zeros(3, 4), "the class profiles are of shape [3, 4], expected [3, 5]"),
        ("prototypes", torch.full((3, 4), float("nan")), "the prototypes must be finite"),
        ("prototypes", torch.zeros(2, 4), "the prototypes are of shape [2, 4], expected [3, 4]"),
        ("prototypes", torch.zeros(3), "the prototypes are of shape [3], expected [3, 0]"),
        ("labels", torch.tensor([1, 1, -1]), "the labels must not be below 0"),
        ("moments", Moments(12, torch.full((5,), -1.0), torch.zeros(5)), "the means must not be below 0"),
        ("moments", Moments(12, torch.ones(5), -torch.ones(5)), "the squares must not be below 0"),
        ("moments", Moments(12, torch.ones(5), torch.full((5,), 140.0)), "deviate further from their means"),
    ],
)  # fmt: skip
def test_what_no_client_could_find_is_told(field: str, value: object, fault: str) -> None:
    """Twelve numbers from 0 with mean 1 are furthest from it as 12 and eleven zeros: 11^2 + 11 = 132."""
    found = replace(drawn_findings(1), **{field: value})  # type: ignore[arg-type]
    assert fault in (fault_of(found, num_filters=5, num_classes=3) or "")


def test_classes_with_other_numbers_of_examples_than_the_profiles_are_told() -> None:
    found = drawn_findings(1)
    other = replace(found, moments=replace(found.moments, count=11))
    fault = "the classes have 12 examples together, the profiles 11, expected as many"
    assert fault_of(other, num_filters=5, num_classes=3) == fault


def test_more_examples_than_an_integer_of_torch_has_squares_for_are_told_apart_all_the_same() -> None:
    found = drawn_findings(1)
    counts = torch.tensor([1 << 39, 1 << 39, 1 << 39])
    moments = replace(found.moments, count=3 << 39)
    assert "do not have the mean" in (fault_of(replace(found, counts=counts, moments=moments), num_filters=5,
                                               num_classes=3) or "")  # fmt: skip


def test_a_class_without_examples_has_nothing() -> None:
    found = drawn_findings(1)
    counts = torch.tensor([0, int(found.counts[0] + found.counts[1]), int(found.counts[2])])
    other = replace(found, counts=counts, correct=torch.zeros(3, dtype=torch.int64))
    assert "a class without examples has" in (fault_of(other, num_filters=5, num_classes=3) or "")


def test_no_validation_example_is_told_with_what_to_do() -> None:
    check_examples(1, "client 3")
    with pytest.raises(ModelError, match=r"client 3 has no validation examples.*raise data\.validation_fraction"):
        check_examples(0, "client 3")
