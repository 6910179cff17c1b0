"""Pictures of examples and of maps."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from spatl.data.normalisation import Normalisation
from spatl.diagnosis.pictures import LARGEST_SIDE, Scale, map_picture


def pixels_of(png: bytes) -> np.ndarray:
    with Image.open(BytesIO(png)) as image:
        return np.asarray(image)


def test_an_8_bit_image_is_shown_as_it_was_before_it_was_normalised():
    before = np.random.default_rng(1).integers(0, 256, (2, 3, 5, 4)).astype(np.float64)
    before[0, 0, 0, 0] = 255
    normalisation = Normalisation((100.0, 120.0, 90.0), (50.0, 60.0, 40.0))
    images = torch.from_numpy(normalisation.apply(before))
    scale = Scale.of(images, normalisation)
    for image, expected in zip(images, before, strict=True):
        assert np.array_equal(pixels_of(scale.picture(image)), expected.transpose(1, 2, 0))


def test_other_values_are_stretched_from_the_least_to_the_largest():
    images = torch.tensor([[[[-2.0, 0.0, 2.0]]], [[[-1.0, 1.0, 1.0]]]])
    scale = Scale.of(images, None)
    assert pixels_of(scale.picture(images[0])).tolist() == [[0, 128, 255]]
    assert pixels_of(scale.picture(images[1])).tolist() == [[64, 191, 191]]


def test_images_of_two_channels_are_shown_in_grey_and_large_ones_thinned_out():
    images = torch.rand(1, 2, 2 * LARGEST_SIDE + 1, 3)
    assert pixels_of(Scale.of(images, None).picture(images[0])).shape == (-(-(2 * LARGEST_SIDE + 1) // 3), 1)


def test_an_image_without_contrast_is_a_picture_too():
    assert pixels_of(Scale.of(torch.zeros(1, 1, 2, 2), None).picture(torch.zeros(1, 2, 2))).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("values", "shown"),
    [([[0.0, 0.0], [0.0, 0.0]], [[255, 255], [255, 255]]), ([[0.0, 2.0], [2.0, 2.0]], [[255, 0], [0, 0]])],
)
def test_a_map_is_dark_where_it_is_large(values, shown):
    assert pixels_of(map_picture(torch.tensor(values))).tolist() == shown
