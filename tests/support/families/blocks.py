"""Blocks as published networks have them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.families.base import Family, conv_norm_relu


class ChannelShuffle(Family):
    """ShuffleNet's unit: grouped 1x1, shuffle, depthwise, grouped 1x1, shortcut (Zhang et al. 2018)."""

    def make(self) -> None:
        self.reduce = conv_norm_relu(8, 8, 1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.expand = conv_norm_relu(8, 8, 1, groups=2)

    def body(self, x: Tensor) -> Tensor:
        y = self.reduce(x)
        y = y.view(len(y), 2, 4, *y.shape[2:]).transpose(1, 2).reshape(y.shape)
        return F.relu(x + self.expand(self.depthwise(y)))


class ShuffleNetV2(Family):
    """Half of the channels pass by, the other half is convolved; then joined and shuffled (Ma et al. 2018)."""

    def make(self) -> None:
        self.branch = nn.Sequential(
            conv_norm_relu(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4), conv_norm_relu(4, 4, 1)
        )

    def body(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        y = torch.cat([left, self.branch(right)], 1)
        return y.view(len(y), 2, 4, *y.shape[2:]).transpose(1, 2).reshape(y.shape)


class C2f(Family):
    """YOLOv8's block: split, bottlenecks one after the other, everything concatenated."""

    leaves = 12

    def make(self) -> None:
        self.enter = conv_norm_relu(8, 8, 1)
        self.bottlenecks = nn.ModuleList([nn.Sequential(conv_norm_relu(4, 4), conv_norm_relu(4, 4)) for _ in range(2)])
        self.leave = conv_norm_relu(16, 12, 1)

    def body(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).split((4, 4), 1))
        for bottleneck in self.bottlenecks:
            parts.append(parts[-1] + bottleneck(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class C2fByChunk(C2f):
    """The same with torch's other way to split."""

    def body(self, x: Tensor) -> Tensor:
        first, second = self.enter(x).chunk(2, 1)
        third = second + self.bottlenecks[0](second)
        return self.leave(torch.cat([first, second, third, self.bottlenecks[1](third)], 1))


class DenseNet(Family):
    """Each layer reads the concatenation of all before it (Huang et al. 2017)."""

    leaves = 14

    def make(self) -> None:
        self.layers = nn.ModuleList(
            [
                nn.Sequential(nn.BatchNorm2d(8 + 3 * i), nn.ReLU(), nn.Conv2d(8 + 3 * i, 3, 3, padding=1))
                for i in range(2)
            ]
        )

    def body(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class GatedByHalves(Family):
    """A gated linear unit: one half of the channels through a sigmoid times the other (Dauphin et al. 2017)."""

    leaves = 6

    def make(self) -> None:
        self.twice = nn.Conv2d(8, 12, 3, padding=1)
        self.after = conv_norm_relu(6, 6)

    def body(self, x: Tensor) -> Tensor:
        values, gates = self.twice(x).chunk(2, 1)
        return self.after(values * gates.sigmoid())


class GLU(GatedByHalves):
    """The same by torch's own function."""

    def body(self, x: Tensor) -> Tensor:
        return self.after(F.glu(self.twice(x), 1))


class SqueezeExcite(Family):
    """Channels scaled by what two linear layers make of their means (Hu et al. 2018)."""

    def make(self) -> None:
        self.conv = conv_norm_relu(8, 10)
        self.squeeze = nn.Linear(10, 4)
        self.excite = nn.Linear(4, 10)
        self.after = conv_norm_relu(10, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gates = self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        return self.after(x * gates[..., None, None])


class PixelShuffle(Family):
    """Super-resolution's step: four channels become one of twice the height and width (Shi et al. 2016)."""

    leaves = 4

    def make(self) -> None:
        self.wide = nn.Conv2d(8, 12, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.after = conv_norm_relu(3, 4)

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.shuffle(self.wide(x)))


class PixelUnshuffle(Family):
    """The way back: one channel becomes four."""

    leaves = 4

    def make(self) -> None:
        self.unshuffle = nn.PixelUnshuffle(2)
        self.after = conv_norm_relu(32, 4)

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.unshuffle(x))


class VisionTransformer(Family):
    """Patches, a class token, positions, attention, a perceptron, LayerNorm (Dosovitskiy et al. 2021)."""

    def make(self) -> None:
        self.patches = nn.Conv2d(8, 8, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 5, 8) / 8)
        self.before, self.between, self.last = nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.expand = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))

    def body(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), 1, 8), x], 1) + self.positions
        y = self.before(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.expand(self.between(x))
        return self.last(x)[:, 0]


class TorchTransformer(Family):
    """Torch's own encoder layer, which takes another path in eval mode."""

    def make(self) -> None:
        self.block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)

    def body(self, x: Tensor) -> Tensor:
        return self.block(x.flatten(2).transpose(1, 2)).mean(1)


class UNet(Family):
    """Down, up by a transposed convolution, joined with what was before (Ronneberger et al. 2015)."""

    leaves = 8

    def make(self) -> None:
        self.down = conv_norm_relu(8, 12)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.join = conv_norm_relu(14, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.join(torch.cat([self.up(self.down(F.max_pool2d(x, 2))), x], 1))


class InvertedResidual(Family):
    """MobileNetV2's block: wide, depthwise, narrow, shortcut (Sandler et al. 2018)."""

    def make(self) -> None:
        self.widen = conv_norm_relu(8, 16, 1)
        self.depthwise = conv_norm_relu(16, 16, groups=16)
        self.narrow = nn.Conv2d(16, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        return x + self.narrow(self.depthwise(self.widen(x)))


class Inception(Family):
    """Branches of unequal width side by side (Szegedy et al. 2015)."""

    leaves = 10

    def make(self) -> None:
        self.one, self.three = conv_norm_relu(8, 4, 1), conv_norm_relu(8, 6)
        self.after = conv_norm_relu(18, 10, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.after(torch.cat([self.three(x), x, self.one(x)], 1))
