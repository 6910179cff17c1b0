"""Image files as pixels: the one place that decodes them, for training and for whoever uses what was trained.

It needs Pillow and NumPy alone, so that a device without PyTorch sees the very pixels that training saw.
"""

import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES: Final = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What names of image files end in, where files are looked for in a directory."""

CHANNELS: Final = {"colour": "RGB", "grey": "L"}
"""What the option `channels` may hold, with Pillow's name for it."""

LARGEST_VALUE: Final = 1e30
"""What a pixel that is not an 8-bit one may be at most, in size: the squares of larger ones overflow."""

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow would run Ghostscript to read an EPS


def read_pixels(file: Path | BytesIO, *, channels: str, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Return the pixels of an image file: BMP, GIF, JPEG, PNG, PPM, TIFF or WebP, whatever its name ends in.

    It is turned upright where its EXIF data say how, and of a moving image the first frame is read. Of 16-bit colour,
    Pillow keeps the upper 8 bits of each value.

    Args:
        file: The file.
        channels: A key of `CHANNELS`; an image of the other kind is converted.
        size: Height and width to which it is resized (bilinear, the aspect ratio is not kept); None leaves it as it is.

    Returns:
        uint8 `[1 or 3, H, W]`.

    Raises:
        ImportError: Pillow is not installed.
        Exception: Whatever the readers of the formats raise on a damaged file; ValueError on a grey image of more than
            8 bits.
    """
    from PIL import Image, ImageOps  # of an extra: most data sets are no image files

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # odd tags beside the pixels
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        with Image.open(file, formats=_FORMATS) as image:
            decoded = _convert(ImageOps.exif_transpose(image), CHANNELS[channels])
    if size is not None and decoded.size != size[::-1]:
        decoded = decoded.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.atleast_3d(np.asarray(decoded)).transpose(2, 0, 1)


def _convert(image: "Image", mode: str) -> "Image":
    if image.mode.startswith(("I", "F")):  # converting these clips whatever exceeds 255
        raise ValueError(f"its pixels have more than 8 bits (mode {image.mode}); save it with 8 bits per channel")
    if image.mode == "P":  # a palette may carry transparency, which a direct conversion warns about
        image = image.convert("RGBA")
    return image.convert(mode)
