"""VGG-11 with BatchNorm, for images from 8x8 upwards.

Configuration A of Simonyan and Zisserman 2015 (arXiv 1409.1556). Departures, usual on small images: BatchNorm after
each convolution, a single linear layer as predictor, and no pooling that the image is too small for.
"""

from torch import Tensor, nn

from spatl.models.common import check_sizes, initialise_, scaled

_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class VGG(nn.Module):
    """Eight 3x3 convolutions in five stages with max pooling between them, average pooling, and `classifier`.

    The size of the images decides which max pools there are. Arguments as of `MobileNet`; `width` multiplies 64 to 512
    channels.
    """

    def __init__(self, *, num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, stage in enumerate(_STAGES):
            for num_channels in stage:
                out_channels = scaled(num_channels, width)
                layers += [
                    nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
                    nn.BatchNorm2d(out_channels),
                    nn.ReLU(),
                ]
                in_channels = out_channels
            # BatchNorm refuses to train on one value per channel, which a last batch of one image would be at 1x1:
            # a pool that is followed by convolutions leaves them at least 2x2.
            smallest = 1 if index == len(_STAGES) - 1 else 2
            if image_size // 2 >= smallest:
                layers.append(nn.MaxPool2d(2))
                image_size //= 2
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(in_channels, num_classes)
        initialise_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[N, num_classes]` of images `[N, in_channels, H, W]`."""
        logits: Tensor = self.classifier(self.pool(self.features(images)).flatten(1))
        return logits


def vgg11(*, num_classes: int, in_channels: int, image_size: int, width: float = 1.0) -> VGG:
    """Return a VGG-11 with BatchNorm (arguments as in `mobilenet`)."""
    check_sizes(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    return VGG(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
