"""Small networks for tests, among them one with everything a user's own module may have."""

import os
import signal

import torch
from torch import Tensor, nn

from spatl.models.resnet import ResNet


class MixedNet(nn.Module):
    """Residual addition, concatenation, depthwise convolution, BatchNorm, and a bare parameter; predictor `head`."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.left = nn.Conv2d(8, 4, 1)
        self.right = nn.Conv2d(8, 6, 1)
        self.join = nn.Conv2d(10, 12, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(1, 12, 1, 1))
        self.hidden = nn.Linear(12 * 4, 20)
        self.head = nn.Linear(20, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images).relu()
        features = features + self.depthwise(self.norm(self.conv(features)).relu())
        features = torch.cat([self.left(features), self.right(features)], 1).relu()
        features = nn.functional.adaptive_avg_pool2d(self.join(features).relu() * self.scale, 2)
        logits: Tensor = self.head(self.hidden(features.flatten(1)).relu())
        return logits


class BroadNet(nn.Module):
    """What a `MixedNet` has, wide enough to be cut, and a grouped and a transposed convolution and a PReLU besides."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 24, 3, padding=1)
        self.conv = nn.Conv2d(24, 24, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.left = nn.Conv2d(24, 16, 1)
        self.right = nn.Conv2d(24, 24, 1)
        self.grouped = nn.Conv2d(40, 48, 3, padding=1, groups=4)
        self.plain = nn.BatchNorm2d(48, affine=False)
        self.scale = nn.Parameter(torch.ones(1, 48, 1, 1))
        self.up = nn.ConvTranspose2d(48, 16, 2, stride=2)
        self.slope = nn.PReLU(16)
        self.hidden = nn.Linear(16 * 4, 20)
        self.head = nn.Linear(20, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images).relu()
        features = features + self.depthwise(self.norm(self.conv(features)).relu())
        features = torch.cat([self.left(features), self.right(features)], 1).relu()
        features = self.slope(self.up(self.plain(self.grouped(features)).relu() * self.scale))
        features = nn.functional.adaptive_avg_pool2d(features, 2)
        logits: Tensor = self.head(self.hidden(features.flatten(1)).relu())
        return logits


class RecurrentNet(nn.Module):
    """A recurrent layer, which the dependency graph does not know, between two that it does; predictor `head`."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 6, 3, padding=1)
        self.rows = nn.GRU(6, 5, batch_first=True)
        self.head = nn.Linear(5, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images).relu().mean(3).transpose(1, 2)
        logits: Tensor = self.head(self.rows(features)[0][:, -1])
        return logits


def deep_net(*, num_classes: int, in_channels: int) -> ResNet:
    """A residual network of depth 116: three streams and 57 inner layers make 60 channel groups; predictor `fc`."""
    return ResNet(blocks_per_stage=19, num_classes=num_classes, in_channels=in_channels, width=0.25)


def frozen_stem_net(*, num_classes: int, in_channels: int) -> MixedNet:
    """A `MixedNet` whose first layer is not trained."""
    network = MixedNet(num_classes=num_classes, in_channels=in_channels)
    network.stem.requires_grad_(False)
    return network


class CountingNet(MixedNet):
    """A `MixedNet` with a buffer that is not persistent and moves in training, and a constant one that is infinite."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.register_buffer("calls", torch.zeros(()), persistent=False)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return super().forward(images) * (1 + 0.1 * self.calls) + self.mask[0]


class ShuffleNet(nn.Module):
    """Transposed convolution and pixel shuffle, whose rearrangement the dependency graph does not follow."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.shuffle = nn.PixelShuffle(2)
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.head = nn.Linear(6, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.shuffle(self.up(self.stem(images).relu()).relu())
        logits: Tensor = self.head(self.conv(features).relu().mean((2, 3)))
        return logits


def wrong_classes(*, num_classes: int, in_channels: int) -> MixedNet:
    """A `MixedNet` with half of the classes it was asked for."""
    return MixedNet(num_classes=num_classes // 2, in_channels=in_channels)


class GroupedNet(nn.Module):
    """A grouped convolution that is not depthwise, between two plain ones; predictor `head`."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.mix = nn.Conv2d(12, 6, 1)
        self.head = nn.Linear(6, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.grouped(self.stem(images).relu()).relu()
        logits: Tensor = self.head(self.mix(features).relu().mean((2, 3)))
        return logits


class TiedNet(nn.Module):
    """Two layers with one weight, and one whose weight is computed; predictor `head`."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 6, 3, padding=1)
        self.first = nn.Conv2d(6, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.second.weight = self.first.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 5, 1))
        self.head = nn.Linear(5, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.second(self.first(self.stem(images).relu()).relu()).relu()
        logits: Tensor = self.head(self.normed(features).relu().mean((2, 3)))
        return logits


def deadly_net(*, num_classes: int, in_channels: int) -> nn.Module:
    """Kills its process when it is built."""
    os.kill(os.getpid(), signal.SIGKILL)
    return MixedNet(num_classes=num_classes, in_channels=in_channels)


class Perceptron(nn.Module):
    """A network without a convolution, for images of 8 x 8."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, 12), nn.ReLU())
        self.head = nn.Linear(12, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images))
