"""PNG files, read back by Pillow."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from spatl.pixels.png import png_of


@given(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_pixels_that_are_written_are_those_that_are_read(channels, height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (channels, height, width), dtype=np.uint8)
    with Image.open(BytesIO(png_of(pixels))) as image:
        assert image.mode == {1: "L", 3: "RGB"}[channels]
        assert np.array_equal(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1), pixels)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((2, 4, 4), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((1, 4, 4)), np.zeros((1, 0, 4), np.uint8)],
)
def test_what_is_no_picture_is_refused(pixels):
    with pytest.raises(ValueError, match="expected uint8"):
        png_of(pixels)
