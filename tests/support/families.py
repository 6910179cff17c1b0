"""Small networks of many families, most of which reorder, split or mix channels; the predictor of each is `head`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv(inputs: int, outputs: int, kernel: int = 3, **options) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Family(nn.Module):
    """A stem, the family's body on 8 channels, and a predictor on what it leaves."""

    width = 8
    leaves = 8

    def __init__(self, *, num_classes: int = 5, in_channels: int = 1) -> None:
        super().__init__()
        self.stem = _conv(in_channels, self.width)
        self.make()
        self.head = nn.Linear(self.leaves, num_classes)

    def make(self) -> None:
        """Make the body's layers."""

    def body(self, x: Tensor) -> Tensor:
        """[B, 8, 8, 8] to [B, leaves, ...]."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(self.stem(images))
        logits: Tensor = self.head(features.mean((2, 3)) if features.dim() == 4 else features)
        return logits


class ChannelShuffle(Family):
    """ShuffleNet's unit: grouped 1x1, shuffle, depthwise, grouped 1x1, shortcut (Zhang et al. 2018)."""

    def make(self) -> None:
        self.reduce = _conv(8, 8, 1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.expand = _conv(8, 8, 1, groups=2)

    def body(self, x: Tensor) -> Tensor:
        y = self.reduce(x)
        y = y.view(len(y), 2, 4, *y.shape[2:]).transpose(1, 2).reshape(y.shape)
        return F.relu(x + self.expand(self.depthwise(y)))


class ShuffleNetV2(Family):
    """Half of the channels pass by, the other half is convolved; then joined and shuffled (Ma et al. 2018)."""

    def make(self) -> None:
        self.branch = nn.Sequential(_conv(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4), _conv(4, 4, 1))

    def body(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        y = torch.cat([left, self.branch(right)], 1)
        return y.view(len(y), 2, 4, *y.shape[2:]).transpose(1, 2).reshape(y.shape)


class C2f(Family):
    """YOLOv8's block: split, bottlenecks one after the other, everything concatenated."""

    leaves = 12

    def make(self) -> None:
        self.enter = _conv(8, 8, 1)
        self.bottlenecks = nn.ModuleList([nn.Sequential(_conv(4, 4), _conv(4, 4)) for _ in range(2)])
        self.leave = _conv(16, 12, 1)

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
        self.after = _conv(6, 6)

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
        self.conv = _conv(8, 10)
        self.squeeze = nn.Linear(10, 4)
        self.excite = nn.Linear(4, 10)
        self.after = _conv(10, 8, 1)

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
        self.after = _conv(3, 4)

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.shuffle(self.wide(x)))


class PixelUnshuffle(Family):
    """The way back: one channel becomes four."""

    leaves = 4

    def make(self) -> None:
        self.unshuffle = nn.PixelUnshuffle(2)
        self.after = _conv(32, 4)

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


class LinearViewedTransposed(Family):
    """A generator's start: a linear layer's outputs viewed as 8 maps of 4x4, read by a transposed convolution."""

    leaves = 4

    def make(self) -> None:
        self.project = nn.Linear(8, 128)
        self.up = nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1)
        self.after = _conv(6, 4)

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.up(self.project(x.mean((2, 3))).view(-1, 8, 4, 4).relu()).relu())


class LinearTransposed(Family):
    """The same with the channels last in the view."""

    leaves = 4

    def make(self) -> None:
        self.project = nn.Linear(8, 128)
        self.after = _conv(8, 4)

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.project(x.mean((2, 3))).view(-1, 4, 4, 8).permute(0, 3, 1, 2))


class Flip(Family):
    """Channels in reverse order, and added to themselves as they were."""

    leaves = 6

    def make(self) -> None:
        self.conv = _conv(8, 8)
        self.after = _conv(8, 6)

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
        self.after = _conv(8, 4)

    def body(self, x: Tensor) -> Tensor:
        return self.after(x.permute(0, 2, 1, 3))


class UNet(Family):
    """Down, up by a transposed convolution, joined with what was before (Ronneberger et al. 2015)."""

    leaves = 8

    def make(self) -> None:
        self.down = _conv(8, 12)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.join = _conv(14, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.join(torch.cat([self.up(self.down(F.max_pool2d(x, 2))), x], 1))


class InvertedResidual(Family):
    """MobileNetV2's block: wide, depthwise, narrow, shortcut (Sandler et al. 2018)."""

    def make(self) -> None:
        self.widen = _conv(8, 16, 1)
        self.depthwise = _conv(16, 16, groups=16)
        self.narrow = nn.Conv2d(16, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        return x + self.narrow(self.depthwise(self.widen(x)))


class Inception(Family):
    """Branches of unequal width side by side (Szegedy et al. 2015)."""

    leaves = 10

    def make(self) -> None:
        self.one, self.three = _conv(8, 4, 1), _conv(8, 6)
        self.after = _conv(18, 10, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.after(torch.cat([self.three(x), x, self.one(x)], 1))


class GroupNormalised(Family):
    """GroupNorm mixes the channels of a group."""

    leaves = 6

    def make(self) -> None:
        self.conv, self.norm, self.after = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), _conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.norm(self.conv(x)))


class SoftmaxOverChannels(Family):
    """Every channel depends on every other."""

    leaves = 6

    def make(self) -> None:
        self.after = _conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.after(x.softmax(1))


class BareWeight(Family):
    """Read by a function of torch with a parameter of the network itself, and by a layer."""

    leaves = 6

    def make(self) -> None:
        self.weight = nn.Parameter(torch.randn(6, 8, 1, 1) / 3)
        self.after = _conv(8, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.after(x) + F.conv2d(x, self.weight)


class ScaledByPosition(Family):
    """A bare parameter whose last dimension is as long as there are channels, and is not theirs."""

    leaves = 6

    def make(self) -> None:
        self.position = nn.Parameter(torch.ones(1, 8, 8, 8))
        self.after = _conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.after(x + self.position)


class UsedTwice(Family):
    """One layer called twice, the second time on what it gave the first time."""

    def make(self) -> None:
        self.again = _conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.again(self.again(x))


class UsedTwiceFlipped(UsedTwice):
    """The second time with its channels in reverse order."""

    def body(self, x: Tensor) -> Tensor:
        return self.again(self.again(x).flip(1))


class AuxiliaryOutput(Family):
    """The sum of a layer's channels reaches the logits past all layers."""

    def make(self) -> None:
        self.conv = _conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + self.stem(images).mean((1, 2, 3))[:, None]


class SharedNorm(Family):
    """One BatchNorm for the outputs of two layers."""

    leaves = 6

    def make(self) -> None:
        self.first, self.second, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.after = _conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.norm(self.second(self.norm(self.first(x)).relu())).relu())


class ZeroInitialised(Family):
    """A residual branch whose last BatchNorm starts at zero, with a flip that this would hide."""

    def make(self) -> None:
        self.branch, self.norm, self.after = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), _conv(8, 8)
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
        self.depthwise, self.after = nn.Conv2d(8, 16, 3, padding=1, groups=8), _conv(16, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.depthwise(x).relu())


class PairedDepthwise(MultipliedDepthwise):
    """As many groups as outputs, each of two inputs."""

    def make(self) -> None:
        self.depthwise, self.after = nn.Conv2d(8, 4, 3, padding=1, groups=4), _conv(4, 6, 1)


class Recurrent(Family):
    """A recurrent layer over rows."""

    leaves = 6

    def make(self) -> None:
        self.conv, self.rows = _conv(8, 5), nn.LSTM(5, 6, batch_first=True)

    def body(self, x: Tensor) -> Tensor:
        return self.rows(self.conv(x).mean(3).transpose(1, 2))[0][:, -1]


FAMILIES: dict[str, type[Family]] = {
    name: value
    for name, value in list(globals().items())
    if isinstance(value, type) and issubclass(value, Family) and value is not Family
}
