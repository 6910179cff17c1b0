"""Numbers that are none are blamed on what made them, and on the learning rate only where it did."""

import math

import pytest
import torch
from torch import Tensor, nn

from spatl.errors import SpatlError
from tests.support.federations import run_tiny, tiny_config


class Net(nn.Module):
    """A small network with something wrong in it.

    Args:
        num_classes: Of its head.
        wrong: `weight` for a weight of NaN, `forward` for a loss of NaN, `training` for one in training mode only.
    """

    def __init__(self, *, num_classes: int, wrong: str) -> None:
        super().__init__()
        self.body = nn.Linear(64, 8)
        self.head = nn.Linear(8, num_classes)
        self._wrong = wrong
        if wrong == "weight":
            with torch.no_grad():
                self.body.weight[3, 5:7] = math.nan

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, NaN where they are meant to be so and the input is no probe of zeros or of one image."""
        logits: Tensor = self.head(self.body(images.flatten(1)).relu())
        if len(images) > 1 and (self._wrong == "forward" or (self._wrong == "training" and self.training)):
            return logits * math.nan
        return logits


def told_by(directory, wrong, *, learning_rate=0.01):
    config = tiny_config(
        method="fedavg",
        rounds=4,
        partition={"num_clients": 2},
        model={"name": "tests.clients.test_causes:Net", "cut": ["head"], "options": {"wrong": wrong}},
        training={"learning_rate": learning_rate, "local_steps": 2},
    )
    with pytest.raises(SpatlError) as caught:
        run_tiny(config, directory)
    return str(caught.value)


def test_initial_weights_that_are_no_numbers_are_named_before_anything_runs(tmp_path):
    told = told_by(tmp_path, "weight")
    assert "the model's initial weights must be finite, got 2 of 512 in 'body.weight'" in told
    assert "learning_rate" not in told


@pytest.mark.parametrize(
    ("wrong", "where"), [("forward", "both in training mode and in eval mode"), ("training", "though not in eval mode")]
)
def test_a_forward_pass_that_makes_nan_of_numbers_is_blamed_and_not_the_learning_rate(wrong, where, tmp_path):
    told = told_by(tmp_path, wrong)
    assert where in told
    assert "learning_rate" not in told


def test_a_learning_rate_that_is_too_large_is_blamed(tmp_path):
    assert "training.learning_rate" in told_by(tmp_path, "", learning_rate=1e20)
