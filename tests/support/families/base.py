"""What the families have in common."""

from torch import Tensor, nn


def conv_norm_relu(inputs: int, outputs: int, kernel: int = 3, **options) -> nn.Sequential:
    """A convolution that keeps the size, its normalisation layer and a ReLU."""
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
        self.stem = conv_norm_relu(in_channels, self.width)
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
