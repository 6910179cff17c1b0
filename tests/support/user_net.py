"""A user's own network and the ways in which a user's factory can be wrong; reached by "module:factory" references."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spatl.errors import ModelError

INSTANCE = nn.Linear(1, 1)
A_NUMBER = 3


class UserNet(nn.Module):
    """A residual addition, a concatenation and a depthwise convolution; it does not care for the image size."""

    def __init__(self, *, num_classes: int, in_channels: int, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.BatchNorm2d(width)
        self.branch = nn.Conv2d(width, width // 2, 1)
        self.head = nn.Sequential(nn.LayerNorm(width + width // 2), nn.Linear(width + width // 2, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        stem = F.relu(self.stem(images))
        residual = F.relu(stem + self.norm(self.depthwise(stem)))
        features = torch.cat([residual, self.branch(residual)], dim=1)
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def anything_goes(**kwargs: Any) -> nn.Module:
    model = nn.Sequential(nn.Linear(1, 1))
    model.received = kwargs  # type: ignore[assignment]  # a plain attribute, read by the test
    return model


def needs_nothing() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 1))


def not_a_module() -> str:
    return "not a module"


def divides_by_zero() -> nn.Module:
    raise ZeroDivisionError("first line\nsecond line")


def knows_better() -> nn.Module:
    raise ModelError("a clear line of the factory's own")
