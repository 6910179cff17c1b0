"""Two-convolution network of the first federated learning papers, without BatchNorm.

McMahan et al. 2017 (arXiv 1602.05629), section 3, with 512 hidden units; LEAF's network for FEMNIST (arXiv 1812.01097)
is the same with `hidden=2048`.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from spatl.errors import ModelError
from spatl.models.common import check_sizes, initialise_


class CNN(nn.Module):
    """Two 5x5 convolutions, each with ReLU and 2x2 max pooling, a hidden layer, and the predictor `classifier`.

    Args:
        num_classes: Outputs of `classifier`.
        in_channels: Channels of the images.
        image_size: Side of the images; padding keeps it, each pool halves it.
        channels: Output channels of the first and the second convolution.
        hidden: Units of the hidden layer, which belongs to the encoder.
    """

    def __init__(
        self, *, num_classes: int, in_channels: int, image_size: int, channels: tuple[int, int], hidden: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels[0], 5, padding=2)
        self.conv2 = nn.Conv2d(channels[0], channels[1], 5, padding=2)
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(channels[1] * (image_size // 4) ** 2, hidden)
        self.classifier = nn.Linear(hidden, num_classes)
        initialise_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[N, num_classes]` of images `[N, in_channels, image_size, image_size]`."""
        features = self.pool(F.relu(self.conv1(images)))
        features = self.pool(F.relu(self.conv2(features)))
        logits: Tensor = self.classifier(F.relu(self.hidden(features.flatten(1))))
        return logits


def cnn(
    *, num_classes: int, in_channels: int, image_size: int, channels: Sequence[int] = (32, 64), hidden: int = 512
) -> CNN:
    """Return the two-convolution network.

    Args:
        num_classes: Number of classes, at least 2.
        in_channels: Channels of the images.
        image_size: Side of the square images, at least 8.
        channels: Output channels of the two convolutions.
        hidden: Units of the hidden layer.

    Raises:
        ModelError: If a size is out of range.
    """
    check_sizes(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    if len(channels) != 2 or min(channels) < 1:
        raise ModelError(
            f"channels must be two positive numbers, got {list(channels)} (configs: model.options.channels)"
        )
    if hidden < 1:
        raise ModelError(f"hidden must be at least 1, got {hidden} (configs: model.options.hidden)")
    return CNN(
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        channels=(channels[0], channels[1]),
        hidden=hidden,
    )
