"""The procedural images."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spatl.data.synthetic import synthetic


@pytest.mark.slow
@given(seed=st.integers(0, 2**32), difficulty=st.floats(0, 1), image_size=st.integers(8, 40))
def test_the_images_are_a_pure_function_of_the_seed_and_the_options(
    seed: int, difficulty: float, image_size: int
) -> None:
    first, second = (synthetic(seed, num_examples=12, image_size=image_size, difficulty=difficulty) for _ in range(2))
    assert first.inputs.shape == (12, 3, image_size, image_size)
    assert first.inputs.equal(second.inputs)
    assert first.targets.equal(second.targets)


def test_the_global_generators_neither_matter_nor_move() -> None:
    first = synthetic(1, num_examples=20)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=True)
    second = synthetic(1, num_examples=20)
    assert first.inputs.equal(second.inputs)
    assert torch.get_rng_state().equal(torch_state)
    assert repr(np.random.get_state(legacy=True)) == repr(numpy_state)


def test_another_seed_gives_other_images() -> None:
    assert not synthetic(1, num_examples=20).inputs.equal(synthetic(2, num_examples=20).inputs)


@pytest.mark.slow
@given(num_classes=st.integers(2, 100), extra=st.integers(0, 150))
def test_classes_are_balanced_to_within_one(num_classes: int, extra: int) -> None:
    dataset = synthetic(3, num_examples=num_classes + extra, num_classes=num_classes, image_size=8)
    sizes = dataset.targets.bincount(minlength=num_classes)
    assert int(sizes.max() - sizes.min()) <= 1
    assert len(sizes) == num_classes


def test_rendering_in_pieces_keeps_each_channel_standardised() -> None:
    images = synthetic(4, num_examples=1200, image_size=16).inputs
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_linear_classifier_hardly_beats_guessing() -> None:
    """Ridge regression on the pixels of 2,000 images, tested on 1,000: guessing scores 0.1, ResNet-8 above 0.8."""
    dataset = synthetic(1, num_examples=3000)
    pixels = dataset.inputs.flatten(1)
    train, test = pixels[:2000], pixels[2000:]
    targets = torch.nn.functional.one_hot(dataset.targets[:2000], 10).float() - 0.1
    dual = torch.linalg.solve(train @ train.T + 3000 * torch.eye(2000), targets)
    accuracy = ((test @ train.T @ dual).argmax(dim=1) == dataset.targets[2000:]).float().mean()
    assert float(accuracy) < 0.25


def spectrum_accuracy(difficulty: float) -> float:
    """Accuracy of the nearest class mean of amplitude spectra: blind to shifts, and cheap."""
    dataset = synthetic(1, num_examples=2000, difficulty=difficulty)
    spectra = torch.fft.rfft2(dataset.inputs.mean(dim=1)).abs().flatten(1)
    spectra = spectra / spectra.norm(dim=1, keepdim=True)
    train, test, labels = spectra[:1500], spectra[1500:], dataset.targets
    means = torch.stack([class_mean(train, labels[:1500], label) for label in range(10)])
    return float((torch.cdist(test, means).argmin(dim=1) == labels[1500:]).float().mean())


def class_mean(features: Tensor, labels: Tensor, label: int) -> Tensor:
    return features[labels == label].mean(dim=0)


@pytest.mark.slow
def test_what_a_spectrum_tells_of_the_class_falls_with_difficulty() -> None:
    accuracies = [spectrum_accuracy(difficulty) for difficulty in (0.0, 0.25, 0.5, 1.0)]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > accuracies[-1] + 0.3


@pytest.mark.parametrize("difficulty", [0, 1])
def test_the_ends_of_the_difficulty_may_be_whole_numbers(difficulty: int) -> None:
    assert len(synthetic(1, num_examples=10, difficulty=difficulty)) == 10
