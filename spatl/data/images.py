"""Pixels as numbers: decoding image files, and standardising each channel over the whole data set."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatl.data.checks import missing_package, one_line
from spatl.data.normalisation import Normalisation
from spatl.data.own import is_as_found
from spatl.errors import DataError
from spatl.pixels.files import read_pixels

Pixels = NDArray[np.uint8]

_IMAGES_AT_ONCE = 1000  # bounds the memory of counting, which takes eight bytes per pixel


def standardise(pixels: Pixels) -> tuple[NDArray[np.float32], Normalisation | None]:
    """Return 8-bit pixels with zero mean and unit variance in each channel, by exact integer counts.

    Args:
        pixels: `[N, C, H, W]`.

    Returns:
        `[N, C, H, W]`, the same bits on every machine, and by what they became so; a channel of one constant value
        becomes zero. The pixels as they are, and None, where data are read as found (`spatl.data.own`).
    """
    if is_as_found():
        return pixels.astype(np.float32), None
    levels = np.arange(256)
    images = np.empty(pixels.shape, dtype=np.float32)
    means, deviations = [], []
    for channel in range(pixels.shape[1]):
        counts = np.zeros(256, dtype=np.int64)
        for start in range(0, len(pixels), _IMAGES_AT_ONCE):
            counts += np.bincount(pixels[start : start + _IMAGES_AT_ONCE, channel].ravel(), minlength=256)
        mean = (counts @ levels) / counts.sum()
        variance = (counts @ levels**2) / counts.sum() - mean**2
        deviation = np.sqrt(variance) if variance > 0 else 1.0
        images[:, channel] = ((levels - mean) / deviation).astype(np.float32)[pixels[:, channel]]
        means.append(float(mean))
        deviations.append(float(deviation))
    return images, Normalisation(tuple(means), tuple(deviations))


def standardise_values(values: NDArray[Any]) -> tuple[NDArray[np.float32], Normalisation | None]:
    """Return pixels of any values with zero mean and unit variance in each channel.

    Args:
        values: `[N, C, H, W]`, floating point, at most `LARGEST_VALUE` in size.

    Returns:
        `[N, C, H, W]`, and by what they became so; a channel of one constant value becomes zero. The last bits depend
        on how NumPy was built. The values as they are, and None, where data are read as found.
    """
    if is_as_found():
        return values.astype(np.float32), None
    means, deviations = [], []
    for channel in range(values.shape[1]):
        exact = values[:, channel].astype(np.float64)
        # The mean of one constant value is rounded, and may be another one.
        mean = exact.flat[0] if exact.min() == exact.max() else exact.mean()
        exact -= mean
        means.append(float(mean))
        deviations.append(float(exact.std() or 1.0))
    normalisation = Normalisation(tuple(means), tuple(deviations))
    return normalisation.apply(values), normalisation


def numbered(values: NDArray[Any]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return values of any kind as their positions among the sorted distinct ones, and those as texts.

    Args:
        values: `[N]`, numbers or texts.
    """
    distinct, positions = np.unique(values, return_inverse=True)
    return positions.astype(np.int64), tuple(str(value) for value in distinct)


def decode_images(
    dataset: str, files: Sequence[tuple[str, Path | BytesIO]], *, channels: str, image_size: int | None
) -> Pixels:
    """Return the pixels of image files: BMP, GIF, JPEG, PNG, PPM, TIFF or WebP, whatever their names end in.

    Images are turned upright where their EXIF data say how, and of a moving image the first frame is read. Grey images
    of more than 8 bits are refused; of 16-bit colour, Pillow keeps the upper 8 bits of each value.

    Args:
        dataset: The data set's name, for messages.
        files: Each file with what to call it in a message.
        channels: A key of `CHANNELS`; images of the other kind are converted.
        image_size: Height and width to which images are resized (bilinear, the aspect ratio is not kept); None
            leaves them as they are, and they must all have the same size.

    Returns:
        `[N, 1 or 3, H, W]`.

    Raises:
        DataError: Pillow is missing, a file is not an image of these formats or is grey with more than 8 bits, sizes
            differ, or the images do not fit in memory.
    """
    size = None if image_size is None else (image_size, image_size)
    pixels: Pixels | None = None
    for position, (title, file) in enumerate(files):
        try:
            values = read_pixels(file, channels=channels, size=size)
        except ImportError as error:
            raise missing_package(f"data set {dataset!r}", "Pillow") from error
        except Exception as error:  # on damaged files, the readers of the formats raise whatever comes
            raise DataError(f"{dataset}: {title} is not an image that can be read: {one_line(error)}") from error
        if pixels is None:
            pixels = _room_for(dataset, len(files), values.shape)
        if values.shape != pixels.shape[1:]:
            raise DataError(
                f"{dataset}: images differ in size: {title} is {values.shape[1]} x {values.shape[2]}, {files[0][0]} is "
                f"{pixels.shape[2]} x {pixels.shape[3]}; set data.options.image_size"
            )
        pixels[position] = values
    if pixels is None:
        raise DataError(f"{dataset}: there are no images")
    return pixels


def _room_for(dataset: str, num_images: int, shape: tuple[int, ...]) -> Pixels:
    try:
        return np.empty((num_images, *shape), dtype=np.uint8)
    except MemoryError as error:
        gigabytes = num_images * np.prod(shape, dtype=np.int64) * 5 / 1e9  # as bytes, and again as float32
        raise DataError(
            f"{dataset}: {num_images:,} images of {shape[1]} x {shape[2]} need {gigabytes:,.0f} GB of memory: set "
            "data.options.image_size, to less where it is set"
        ) from error
