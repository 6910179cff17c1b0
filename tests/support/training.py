"""A small network and examples to train it on."""

import torch
from torch import nn

from spatl.data import Examples


def examples(number=50, seed=0) -> Examples:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(number, 1, 4, 4, generator=draw)
    return Examples(images, (images.mean((1, 2, 3)) > 0).long())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(12, 2)
    )
