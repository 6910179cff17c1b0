"""Normalisation of images, as a network was trained with it and whoever uses it must repeat it; NumPy alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Normalisation:
    """Mean and deviation of each channel, in the units of the pixels as they were read.

    An 8-bit image counts from 0 to 255; other arrays are taken as they are.

    Attributes:
        means: What is taken from the values of each channel.
        deviations: What they are then divided by; none is 0.
    """

    means: tuple[float, ...]
    deviations: tuple[float, ...]

    def apply(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return pixels `[N, C, H, W]` as a network takes them: in float64, and then rounded to float32."""
        images = np.empty(pixels.shape, dtype=np.float32)
        for channel, (mean, deviation) in enumerate(zip(self.means, self.deviations, strict=True)):
            images[:, channel] = (pixels[:, channel].astype(np.float64) - mean) / deviation
        return images
