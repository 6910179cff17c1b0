"""Residual networks for small images: three stages of equal blocks, 16, 32 and 64 channels wide.

He et al. 2016 (arXiv 1512.03385), section 4.2, has depth 6n + 2 for n blocks per stage. Departure: where the shape
changes the shortcut is a 1x1 convolution with BatchNorm (their option B) instead of a padded copy, so that every
channel of a stage belongs to parameters that can be selected.
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from spatl.models.common import check_sizes, initialise_, scaled


class ResNet(nn.Module):
    """Network of a 3x3 stem, three stages of `BasicBlock`s, global average pooling, and the predictor `fc`.

    Args:
        blocks_per_stage: n, at least 1; the depth is 6n + 2.
        num_classes: Outputs of `fc`.
        in_channels: Channels of the images.
        width: Multiplies the 16, 32 and 64 channels.
    """

    def __init__(self, *, blocks_per_stage: int, num_classes: int, in_channels: int, width: float = 1.0) -> None:
        super().__init__()
        channels = [scaled(num_channels, width) for num_channels in (16, 16, 32, 64)]
        self.conv = nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels[0])
        self.stage1, self.stage2, self.stage3 = (
            _stage(blocks_per_stage, before, after, stride=stride)
            for (before, after), stride in zip(pairwise(channels), (1, 2, 2), strict=True)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels[-1], num_classes)
        initialise_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[N, num_classes]` of images `[N, in_channels, H, W]`."""
        features = F.relu(self.norm(self.conv(images)))
        features = self.stage3(self.stage2(self.stage1(features)))
        logits: Tensor = self.fc(self.pool(features).flatten(1))
        return logits


class BasicBlock(nn.Module):
    """Block of two 3x3 convolutions with BatchNorm, added to the shortcut before the last ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, features: Tensor) -> Tensor:
        """Return `[N, out_channels, H / stride, W / stride]` for features `[N, in_channels, H, W]`."""
        residual = F.relu(self.norm1(self.conv1(features)))
        return F.relu(self.norm2(self.conv2(residual)) + self.shortcut(features))


def resnet8(*, num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> ResNet:
    """Return a ResNet of one block per stage (arguments as in `resnet20`)."""
    check_sizes(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    return ResNet(blocks_per_stage=1, num_classes=num_classes, in_channels=in_channels, width=width)


def resnet20(*, num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> ResNet:
    """Return a ResNet of three blocks per stage.

    Args:
        num_classes: Number of classes, at least 2.
        in_channels: Channels of the images.
        image_size: Side of the square images, at least 8; the weights do not depend on it.
        width: Multiplies the number of channels of every layer.

    Raises:
        ModelError: If a size is out of range.
    """
    check_sizes(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    return ResNet(blocks_per_stage=3, num_classes=num_classes, in_channels=in_channels, width=width)


def resnet32(*, num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> ResNet:
    """Return a ResNet of five blocks per stage (arguments as in `resnet20`)."""
    check_sizes(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    return ResNet(blocks_per_stage=5, num_classes=num_classes, in_channels=in_channels, width=width)


def resnet56(*, num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> ResNet:
    """Return a ResNet of nine blocks per stage (arguments as in `resnet20`)."""
    check_sizes(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    return ResNet(blocks_per_stage=9, num_classes=num_classes, in_channels=in_channels, width=width)


def _stage(num_blocks: int, in_channels: int, out_channels: int, *, stride: int) -> nn.Sequential:
    """Return a stage: blocks of one width, the first of which changes the shape."""
    later = [BasicBlock(out_channels, out_channels, stride=1) for _ in range(num_blocks - 1)]
    return nn.Sequential(BasicBlock(in_channels, out_channels, stride=stride), *later)
