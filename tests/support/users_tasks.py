"""Losses, metrics and data of a user's own, for tasks other than classification."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spatl.tasks.metrics import Metric

A_NUMBER = 3


def largest_error(outputs: Tensor, targets: Tensor) -> float:
    """Nothing that adds up."""
    return float((outputs - targets).abs().max())


largest_error.higher_is_better = False  # type: ignore[attr-defined]

BIAS = Metric(
    name="bias", lowest=-1e9, highest=1e9,
    sums=lambda outputs, targets: torch.tensor([float((outputs - targets).sum()), float(targets.numel())]).double(),
    value=lambda sums: float(sums[0] / sums[1]), size=lambda num_outputs: 2,
)  # fmt: skip


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """A metric with the name of one that is built in."""
    return 100 * float((outputs.argmax(1) == targets).double().mean())


def token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of tokens, which is no number where none counts."""
    return torch.nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=-100)


def quantile_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The pinball loss of the ninth tenth."""
    error = targets - outputs
    return torch.maximum(0.9 * error, -0.1 * error).mean()


def a_list(outputs: Tensor, targets: Tensor) -> list[float]:
    return [0.0]


class OfLabels(nn.Module):
    """A criterion as PyTorch has them."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs, targets)


def linear(seed: int, number: int = 240) -> dict[str, Any]:
    """Two values that are linear in six numbers, in units far from 1, of four owners."""
    draws = np.random.default_rng(seed)
    inputs, weights = draws.normal(size=(number, 6)).astype(np.float32), draws.normal(size=(6, 2))
    targets = 1000 + 50 * inputs @ weights + draws.normal(size=(number, 2))
    return {"inputs": inputs, "targets": targets.astype(np.float32), "groups": np.arange(number) % 4}


def labels(seed: int, number: int = 240) -> dict[str, Any]:
    """Three labels, each of a half space, of four owners."""
    draws = np.random.default_rng(seed)
    inputs, weights = draws.normal(size=(number, 6)).astype(np.float32), draws.normal(size=(6, 3))
    return {"inputs": inputs, "targets": inputs @ weights > 0.3, "groups": np.arange(number) % 4}


def steps(seed: int, number: int = 200, length: int = 9) -> dict[str, Any]:
    """Sequences of 8 tokens, each one or two after the one before; targets follow by shifting."""
    draws = np.random.default_rng(seed)
    moves = draws.choice([1, 2], p=[0.9, 0.1], size=(number, length))
    return {"inputs": np.cumsum(moves, axis=1) % 8, "groups": np.arange(number) % 4}


class Bigram(nn.Module):
    """Logits of the next token by the last one."""

    def __init__(self, num_classes: int, num_tokens: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, 16)
        self.head = nn.Linear(16, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedding(tokens))
        return logits
