"""Networks that rearrange channels, or what lies in them, before they are read."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.families.base import Family, conv_norm_relu


class LinearViewedTransposed(Family):
    """A generator's start: a linear layer's outputs viewed as 8 maps of 4x4, read by a transposed convolution."""

    leaves = 4

    def make(self) -> None:
        self.project = nn.Linear(8, 128)
        self.up = nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1)
        self.after = conv_norm_relu(6, 4)

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.up(self.project(x.mean((2, 3))).view(-1, 8, 4, 4).relu()).relu())


class LinearTransposed(Family):
    """The same with the channels last in the view."""

    leaves = 4

    def make(self) -> None:
        self.project = nn.Linear(8, 128)
        self.after = conv_norm_relu(8, 4)

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.project(x.mean((2, 3))).view(-1, 4, 4, 8).permute(0, 3, 1, 2))


class Flip(Family):
    """Channels in reverse order, and added to themselves as they were."""

    leaves = 6

    def make(self) -> None:
        self.conv = conv_norm_relu(8, 8)
        self.after = conv_norm_relu(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.after(x + self.conv(x).flip(1))


class Roll(Flip):
    """Channels moved by one."""

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.conv(x).roll(1, 1))


class Indexed(Flip):
    """Channels in an order of the network's own."""

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.conv(x)[:, torch.tensor([3, 1, 4, 0, 5, 2, 6, 7])])


class ChannelsLastFlatten(Family):
    """Flattened with the channels last, where the graph thinks them first."""

    leaves = 8 * 4

    def body(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 2).permute(0, 2, 3, 1).flatten(1)


class Flatten(ChannelsLastFlatten):
    """The usual order, four places a channel."""

    def body(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 2).flatten(1)


class PermutedImage(Family):
    """Height taken for channels."""

    leaves = 4

    def make(self) -> None:
        self.after = conv_norm_relu(8, 4)

    def body(self, x: Tensor) -> Tensor:
        return self.after(x.permute(0, 2, 1, 3))
