"""Inputs of a prediction: image files, folders of them, and arrays, as pixels of the shape that a model takes.

It needs NumPy, and Pillow for image files. What cannot be used is named with its reason, and the others are predicted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from spatl.errors import DataError
from spatl.pixels.files import LARGEST_VALUE, SUFFIXES, read_pixels

_ARRAYS: Final = (".npy", ".npz")
_IMAGES = "images"
"""Name of the array to take from an .npz file that holds several."""


@dataclass(frozen=True, eq=False)
class Item:
    """Image to predict.

    Attributes:
        name: The file, and the place in it where it holds several: `digits.npy[3]`.
        pixels: [C, H, W], as read; None where it cannot be used.
        error: Why not; empty where it can.
    """

    name: str
    pixels: NDArray[Any] | None
    error: str = ""


def input_files(inputs: Sequence[str]) -> list[Path]:
    """Return the files that inputs name: a folder stands for the images and arrays below it, in order.

    Raises:
        DataError: One is not there, or a folder holds none.
    """
    files: list[Path] = []
    for each in inputs:
        path = Path(each)
        if path.is_dir():
            found = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in (*SUFFIXES, *_ARRAYS)
                and file.is_file()
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
            if not found:
                raise DataError(
                    f"{path} holds no images: expected files that end in {', '.join((*SUFFIXES, *_ARRAYS))}"
                )
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path} is not there: expected an image, an .npy or .npz file, or a folder of them")
    return files


def read_inputs(files: Sequence[Path], input_shape: tuple[int, int, int]) -> Iterator[Item]:
    """Yield the images in files, one at a time, those that cannot be used with the reason.

    Image files are decoded as for training, made grey or coloured as the model takes them, and resized to its shape.
    Arrays must have that shape: [C, H, W] or [N, C, H, W], for one channel also [H, W] or [N, H, W].

    Args:
        files: Image files, .npy and .npz files.
        input_shape: C, H and W.
    """
    for path in files:
        if path.suffix.lower() in _ARRAYS:
            yield from _of_array(path, input_shape)
        else:
            yield _of_image(path, input_shape)


def count_inputs(files: Sequence[Path]) -> int | None:
    """Return how many images the files hold; None where only reading the arrays would tell."""
    return len(files) if not any(path.suffix.lower() in _ARRAYS for path in files) else None


def _of_image(path: Path, input_shape: tuple[int, int, int]) -> Item:
    channels = {1: "grey", 3: "colour"}.get(input_shape[0])
    if channels is None:
        return Item(str(path), None, f"the model takes {input_shape[0]} channels, which no image file has; give arrays")
    try:
        return Item(str(path), read_pixels(path, channels=channels, size=input_shape[1:]))
    except ImportError:
        return Item(str(path), None, "reading image files needs Pillow: pip install pillow")
    except Exception as error:  # on damaged files, the readers of the formats raise whatever comes
        return Item(str(path), None, f"not an image that can be read: {_one_line(error)}")


def _of_array(path: Path, input_shape: tuple[int, int, int]) -> Iterator[Item]:
    try:
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.ndarray):
            with found:
                names = list(found)
                if len(names) != 1 and _IMAGES not in names:
                    raise ValueError(f"it holds {', '.join(names) or 'nothing'}, and none is called {_IMAGES}")
                found = found[_IMAGES if _IMAGES in names else names[0]]
    except Exception as error:  # as above
        yield Item(str(path), None, f"not an array that can be read: {_one_line(error)}")
        return
    shaped = _shaped(found, input_shape)
    if shaped is None or shaped.dtype.kind not in "uif":
        wanted = ", ".join(map(str, input_shape))
        yield Item(
            str(path), None, f"expected numbers [N, {wanted}] or [{wanted}], got {found.dtype} {list(found.shape)}"
        )
        return
    alone = found.ndim < shaped.ndim and len(shaped) == 1
    for place, pixels in enumerate(shaped):
        name = str(path) if alone else f"{path}[{place}]"
        if (np.abs(pixels.astype(np.float64)) <= LARGEST_VALUE).all():  # NaN is not, either
            yield Item(name, pixels)
        else:
            yield Item(name, None, f"its values must be finite and at most {LARGEST_VALUE:g} in size")


def _shaped(array: NDArray[Any], input_shape: tuple[int, int, int]) -> NDArray[Any] | None:
    """Return an array as [N, C, H, W]; None where it does not fit."""
    for shaped in (array, array[None], *((array[None, None], array[:, None]) if array.ndim in (2, 3) else ())):
        fits: bool = shaped.ndim == 4 and shaped.shape[1:] == input_shape
        if fits:
            return np.asarray(shaped)
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
