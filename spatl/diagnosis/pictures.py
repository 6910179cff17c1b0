"""Pictures of examples: pixels as they were before they were normalised, and maps of where something is large."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.data.normalisation import Normalisation
from spatl.pixels.png import png_of

LARGEST_SIDE: Final = 256
"""Pixels of a picture's longer side, at most; larger ones are thinned out."""
_CLIPPED = 0.99  # the share of a map's values up to the one that is drawn darkest
_EIGHT_BITS = (128.0, 255.5)


@dataclass(frozen=True)
class Scale:
    """Values that are drawn black and white, of the pixels of all examples before they were normalised.

    Attributes:
        normalisation: What was done to them; None for nothing.
        black: The value that is drawn black.
        white: And white.
    """

    normalisation: Normalisation | None
    black: float
    white: float

    @classmethod
    def of(cls, images: Tensor, normalisation: Normalisation | None) -> "Scale":
        """Return the scale of images: 0 to 255 where they look like 8-bit ones, from the least to the largest else.

        Args:
            images: float32 [N, C, H, W], normalised; at least one.
            normalisation: As of the model's description.
        """
        low, high = np.inf, -np.inf
        for image in images:  # one at a time: a copy of all would be as large again
            pixels = _before(image, normalisation)
            low, high = min(low, float(pixels.min())), max(high, float(pixels.max()))
        if low > -0.5 and _EIGHT_BITS[0] <= high <= _EIGHT_BITS[1]:
            return cls(normalisation, 0.0, 255.0)
        return cls(normalisation, low, high)

    def picture(self, image: Tensor) -> bytes:
        """Return a normalised image, float32 [C, H, W], as a PNG file; one of other than 3 channels in grey."""
        pixels = _before(image, self.normalisation)
        if len(pixels) != 3:
            pixels = pixels.mean(0, keepdims=True)
        return _png((pixels - self.black) / max(self.white - self.black, 1e-12))


def map_picture(values: Tensor) -> bytes:
    """Return a map, float [H, W] and at least 0, as a PNG file, dark where it is large; one of zeros is white."""
    largest = float(torch.quantile(values.double().flatten(), _CLIPPED)) or float(values.max())
    shares = values.double().numpy() / largest if largest > 0 else np.zeros(values.shape)
    return _png(1.0 - shares[None])


def _before(image: Tensor, normalisation: Normalisation | None) -> NDArray[np.float64]:
    pixels = image.detach().cpu().double().numpy()
    if normalisation is None:
        return pixels
    means, deviations = (np.array(each)[:, None, None] for each in (normalisation.means, normalisation.deviations))
    found: NDArray[np.float64] = pixels * deviations + means
    return found


def _png(shares: NDArray[np.float64]) -> bytes:
    step = -(-max(shares.shape[1:]) // LARGEST_SIDE)
    return png_of((255 * shares[:, ::step, ::step].clip(0, 1)).round().astype(np.uint8))
