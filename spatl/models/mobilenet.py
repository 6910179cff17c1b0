"""Small MobileNet for small images: depthwise separable convolutions, the network of phones and other devices.

Howard et al. 2017 (arXiv 1704.04861), section 3: a 3x3 depthwise convolution filters each channel by itself, a 1x1
convolution mixes them, each with BatchNorm and ReLU. Departure: six such blocks and a stem of stride 1, since the
images are small; a block halves the image only as long as 2x2 positions are left.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from spatl.models.common import check_sizes, initialise_, scaled

_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2))  # output channels, stride


class MobileNet(nn.Module):
    """Network of a 3x3 stem, six `SeparableBlock`s, global average pooling, and the predictor `classifier`.

    Args:
        num_classes: Outputs of `classifier`.
        in_channels: Channels of the images.
        image_size: Side of the images; decides how many strides there are.
        width: Multiplies the 32 to 512 channels.
    """

    def __init__(self, *, num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> None:
        super().__init__()
        channels = scaled(32, width)
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        blocks: list[nn.Module] = []
        for num_channels, wanted_stride in _BLOCKS:
            # BatchNorm refuses to train on one value per channel, which a last batch of one image would be at 1x1.
            stride = wanted_stride if image_size >= 4 else 1
            image_size = -(-image_size // stride)
            out_channels = scaled(num_channels, width)
            blocks.append(SeparableBlock(channels, out_channels, stride=stride))
            channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialise_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[N, num_classes]` of images `[N, in_channels, H, W]`."""
        features = self.blocks(F.relu(self.norm(self.conv(images))))
        logits: Tensor = self.classifier(self.pool(features).flatten(1))
        return logits


class SeparableBlock(nn.Module):
    """Block of a 3x3 convolution of each channel by itself, then a 1x1 convolution across them."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels, bias=False
        )
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Return `[N, out_channels, H / stride, W / stride]` for features `[N, in_channels, H, W]`."""
        features = F.relu(self.norm1(self.depthwise(features)))
        return F.relu(self.norm2(self.pointwise(features)))


def mobilenet(*, num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> MobileNet:
    """Return a small MobileNet.

    Args:
        num_classes: Number of classes, at least 2.
        in_channels: Channels of the images.
        image_size: Side of the square images, at least 8.
        width: Multiplies the number of channels of every layer.

    Raises:
        ModelError: If a size is out of range.
    """
    check_sizes(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    return MobileNet(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
