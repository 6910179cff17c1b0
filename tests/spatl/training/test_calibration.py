"""The class offset is what its equation says, and the model carries it for as long as it is asked to."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from spatl.config.training import TrainingConfig
from spatl.data import Examples
from spatl.training.calibration import calibrated, class_offset, label_offset, target_offset
from spatl.training.evaluate import evaluate, forward_with_batch_statistics
from spatl.training.local import train_

OFFSET = torch.tensor([1.0, -2.0, 0.5])
IMAGES = torch.linspace(-1, 1, 8).view(2, 1, 2, 2)


def offset_of(counts, *, strength=1.0, smoothing=1.0):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return class_offset(labels, num_classes=len(counts), strength=strength, smoothing=smoothing)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("strength", "smoothing", "ratios"),
    [(1.0, 1.0, [12 / 7, 6 / 7, 3 / 7]), (0.5, 1.0, [12 / 7, 6 / 7, 3 / 7]), (1.0, 4.0, [21 / 16, 15 / 16, 12 / 16])],
)
def test_the_offset_of_three_one_and_no_examples_by_hand(strength, smoothing, ratios):
    """Frequencies (3 + 1, 1 + 1, 0 + 1) / (4 + 3) = 4/7, 2/7, 1/7, times 3; with s = 4: 7/16, 5/16, 4/16, times 3."""
    expected = [strength * math.log(ratio) for ratio in ratios]
    assert offset_of([3, 1, 0], strength=strength, smoothing=smoothing).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_equal_counts_need_no_offset(count):
    assert offset_of([count] * 4).tolist() == [0, 0, 0, 0]


def test_the_probabilities_of_a_network_that_knows_nothing_are_the_smoothed_frequencies():
    torch.testing.assert_close(offset_of([3, 1, 0]).softmax(0), torch.tensor([4 / 7, 2 / 7, 1 / 7]))


def test_every_way_of_calling_the_model_sees_the_offset_until_the_context_ends():
    model = network()
    plain = model(IMAGES)
    with calibrated(model, OFFSET):
        found = [
            model(IMAGES),
            functional_call(model, dict(model.named_parameters()), (IMAGES,)),
            copy.deepcopy(model)(IMAGES),
            forward_with_batch_statistics(model, IMAGES),
        ]
    for logits in found:
        assert torch.equal(logits, plain + OFFSET)
    assert torch.equal(model(IMAGES), plain)
    assert not model._forward_hooks


def test_nothing_is_left_after_an_error():
    model = network()
    with pytest.raises(ZeroDivisionError), calibrated(model, OFFSET):
        raise ZeroDivisionError
    assert not model._forward_hooks


def test_no_offset_leaves_the_model_alone():
    model = network()
    with calibrated(model, None):
        assert not model._forward_hooks


def test_the_gradient_of_training_is_that_of_the_shifted_logits():
    """One step at 1 from zero logits: the bias moves by one-hot minus softmax(offset), here for the one label 0."""
    model, examples = network(), Examples(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64))
    nn.init.zeros_(model[1].bias)
    settings = TrainingConfig(local_epochs=1, batch_size=2, learning_rate=1.0)
    with calibrated(model, OFFSET):
        train_(model, dict(model.named_parameters()), examples, settings, generator=torch.Generator())
    torch.testing.assert_close(model[1].bias.detach(), torch.tensor([1.0, 0, 0]) - OFFSET.softmax(0))


def test_evaluation_ranks_classes_with_the_offset():
    model = network()
    large = torch.tensor([0.0, 0.0, 100.0])
    examples = Examples(IMAGES, torch.tensor([2, 2]))
    with calibrated(model, large):
        assert evaluate(model, examples).accuracy == 1.0
        assert evaluate(model, examples, precision="bf16").accuracy == 1.0


def test_logits_in_half_precision_are_shifted_in_float32():
    model = network()
    with calibrated(model, torch.full((3,), 1e-4)), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(IMAGES)
    assert logits.dtype == torch.float32


def test_the_offset_of_labels_is_their_smoothed_log_odds():
    """Of four examples three have the first label, two the second, none the third; smoothed by one: 4/2, 3/3, 1/5."""
    labels = torch.tensor([[1.0, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]])
    expected = torch.tensor([2.0, 1.0, 0.2]).log()
    torch.testing.assert_close(label_offset(labels, strength=1.0, smoothing=1.0), expected)
    torch.testing.assert_close(label_offset(labels, strength=0.5, smoothing=1.0), expected / 2)
    given = {"num_classes": 3, "strength": 1.0, "smoothing": 1.0}
    torch.testing.assert_close(target_offset("multi-label", labels, **given), expected)
    assert target_offset("regression", labels, **given) is None
    classes = torch.tensor([0, 1, 1])
    torch.testing.assert_close(target_offset("classification", classes, **given), class_offset(classes, **given))
