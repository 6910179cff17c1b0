"""Common parts of the built-in networks, so that all of them check, scale and initialise in one way."""

import math

import torch
from torch import nn

from spatl.errors import ModelError

SMALLEST_IMAGE = 8
"""The smallest image side, in pixels, that every built-in network accepts."""


def check_sizes(*, num_classes: int, in_channels: int, image_size: int) -> None:
    """Refuse data that no built-in network is made for.

    Raises:
        ModelError: If there is no output, no channel, or images are smaller than 8x8.
    """
    if num_classes < 1:
        raise ModelError(f"num_classes must be at least 1, got {num_classes}")
    if in_channels < 1:
        raise ModelError(f"in_channels must be at least 1, got {in_channels}")
    if image_size < SMALLEST_IMAGE:
        raise ModelError(f"image_size must be at least {SMALLEST_IMAGE}, got {image_size}")


def scaled(num_channels: int, width: float) -> int:
    """Return `num_channels` times the width multiplier, rounded, and at least 1.

    Raises:
        ModelError: If `width` is not a finite positive number.
    """
    if not 0 < width < math.inf:
        raise ModelError(f"width must be a positive number, got {width} (configs: model.options.width)")
    return max(1, round(num_channels * width))


def initialise_(model: nn.Module) -> None:
    """Draw the weights of convolutions by He's rule and of linear layers in torch's own range, with zero biases.

    The weights are uniform in ±sqrt(6 / fan_in) for convolutions and ±sqrt(1 / fan_in) for linear layers. Every
    participant builds the initial encoder from the seed instead of downloading it, so its bits must not depend on the
    processor: a uniform draw in [-1, 1) is exact in float32 and its scaling one rounded product, whereas the last bits
    of a normal draw (logarithm, cosine) differ between instruction sets.

    References:
        He et al. 2015, arXiv 1502.01852, equation 10.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                gain = 6.0 if isinstance(module, nn.Conv2d) else 1.0
                fan_in = module.weight[0].numel()
                module.weight.uniform_(-1.0, 1.0).mul_(math.sqrt(gain / fan_in))
                if module.bias is not None:
                    module.bias.zero_()
