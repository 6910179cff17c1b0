"""Networks whose layers are shared, used twice, scaled, mixed or read in other ways."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.families.base import Family, conv_norm_relu


class GroupNormalised(Family):
    """GroupNorm mixes the channels of a group."""

    leaves = 6

    def make(self) -> None:
        self.conv, self.norm, self.after = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), conv_norm_relu(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.norm(self.conv(x)))


class SoftmaxOverChannels(Family):
    """Every channel depends on every other."""

    leaves = 6

    def make(self) -> None:
        self.after = conv_norm_relu(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.after(x.softmax(1))


class BareWeight(Family):
    """Read by a function of torch with a parameter of the network itself, and by a layer."""

    leaves = 6

    def make(self) -> None:
        self.weight = nn.Parameter(torch.randn(6, 8, 1, 1) / 3)
        self.after = conv_norm_relu(8, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.after(x) + F.conv2d(x, self.weight)


class ScaledByPosition(Family):
    """A bare parameter whose last dimension is as long as there are channels, and is not theirs."""

    leaves = 6

    def make(self) -> None:
        self.position = nn.Parameter(torch.ones(1, 8, 8, 8))
        self.after = conv_norm_relu(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.after(x + self.position)


class UsedTwice(Family):
    """One layer called twice, the second time on what it gave the first time."""

    def make(self) -> None:
        self.again = conv_norm_relu(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.again(self.again(x))


class UsedTwiceFlipped(UsedTwice):
    """The second time with its channels in reverse order."""

    def body(self, x: Tensor) -> Tensor:
        return self.again(self.again(x).flip(1))


class AuxiliaryOutput(Family):
    """The sum of a layer's channels reaches the logits past all layers."""

    def make(self) -> None:
        self.conv = conv_norm_relu(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + self.stem(images).mean((1, 2, 3))[:, None]


class SharedNorm(Family):
    """One BatchNorm for the outputs of two layers."""

    leaves = 6

    def make(self) -> None:
        self.first, self.second, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.after = conv_norm_relu(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.norm(self.second(self.norm(self.first(x)).relu())).relu())


class ZeroInitialised(Family):
    """A residual branch whose last BatchNorm starts at zero, with a flip that this would hide."""

    def make(self) -> None:
        self.branch, self.norm, self.after = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), conv_norm_relu(8, 8)
        nn.init.zeros_(self.norm.weight)

    def body(self, x: Tensor) -> Tensor:
        return self.after(x + self.norm(self.branch(x)).flip(1))


class LayerScaled(ZeroInitialised):
    """ConvNeXt's scale of a residual branch, which starts at a millionth (Liu et al. 2022)."""

    def make(self) -> None:
        super().make()
        self.scale = nn.Parameter(1e-6 * torch.ones(8, 1, 1))

    def body(self, x: Tensor) -> Tensor:
        return self.after(x + self.scale * self.branch(x).flip(1))


class MultipliedDepthwise(Family):
    """Depthwise with two outputs a channel."""

    leaves = 6

    def make(self) -> None:
        self.depthwise, self.after = nn.Conv2d(8, 16, 3, padding=1, groups=8), conv_norm_relu(16, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.depthwise(x).relu())


class PairedDepthwise(MultipliedDepthwise):
    """As many groups as outputs, each of two inputs."""

    def make(self) -> None:
        self.depthwise, self.after = nn.Conv2d(8, 4, 3, padding=1, groups=4), conv_norm_relu(4, 6, 1)


class Recurrent(Family):
    """A recurrent layer over rows."""

    leaves = 6

    def make(self) -> None:
        self.conv, self.rows = conv_norm_relu(8, 5), nn.LSTM(5, 6, batch_first=True)

    def body(self, x: Tensor) -> Tensor:
        return self.rows(self.conv(x).mean(3).transpose(1, 2))[0][:, -1]
