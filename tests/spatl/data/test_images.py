"""Pixels as numbers."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from spatl.data.images import decode_images, numbered, standardise, standardise_values
from spatl.errors import DataError
from spatl.pixels.files import LARGEST_VALUE
from tests.support.formats import png, random_pixels


@given(st.integers(1, 5), st.integers(1, 3), st.integers(2, 6), st.integers(0, 1000))
def test_a_channel_has_mean_zero_and_variance_one(num_examples: int, channels: int, size: int, seed: int) -> None:
    images = standardise(random_pixels(num_examples, channels, size, size, seed=seed))[0].astype(np.float64)
    np.testing.assert_allclose(images.mean(axis=(0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(images.std(axis=(0, 2, 3)), 1, atol=1e-6)


def test_counting_in_pieces_changes_no_bit() -> None:
    pixels = random_pixels(2500, 1, 2, 2)
    mean = pixels.astype(np.int64).sum() / pixels.size
    variance = (pixels.astype(np.int64) ** 2).sum() / pixels.size - mean**2
    expected = ((np.arange(256) - mean) / np.sqrt(variance)).astype(np.float32)[pixels]
    assert (standardise(pixels)[0] == expected).all()


def test_a_constant_channel_becomes_zero() -> None:
    pixels = random_pixels(3, 2, 4, 4)
    pixels[:, 1] = 7
    assert (standardise(pixels)[0][:, 1] == 0).all()
    assert (standardise_values(pixels.astype(np.float32))[0][:, 1] == 0).all()


@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 0.7])
def test_a_constant_channel_becomes_zero_where_its_mean_is_rounded(value: float) -> None:
    """The mean of 1,000 x 49 values 0.3 is 0.3 - 5.6e-17."""
    assert (standardise_values(np.full((1000, 1, 7, 7), value))[0] == 0).all()


def test_the_largest_values_are_standardised_too() -> None:
    values = random_pixels(20, 3, 4, 4)
    np.testing.assert_allclose(standardise_values(values * (LARGEST_VALUE / 255))[0], standardise(values)[0], atol=1e-5)


def test_values_of_any_range_are_standardised_alike() -> None:
    pixels = random_pixels(20, 3, 4, 4)
    np.testing.assert_allclose(standardise_values(pixels / 255)[0], standardise(pixels)[0], atol=1e-5)


@given(st.integers(0, 1000), st.booleans())
def test_images_are_what_their_normalisation_makes_of_the_pixels(seed: int, whole: bool) -> None:
    """To the last bit, so that whoever uses a model later gives it what it was trained on."""
    pixels = random_pixels(7, 2, 5, 4, seed=seed)
    pixels[:, 1] = 7
    images, normalisation = standardise(pixels) if whole else standardise_values(pixels / 3)
    assert normalisation is not None
    assert normalisation.apply(pixels if whole else pixels / 3).tobytes() == images.tobytes()


def test_owners_are_numbered_in_sorted_order() -> None:
    positions, names = numbered(np.array(["b", "a", "b", "c"]))
    assert positions.tolist() == [1, 0, 1, 2]
    assert names == ("a", "b", "c")


def encoded(pixels: np.ndarray) -> io.BytesIO:
    return io.BytesIO(png(pixels))


def test_a_decoded_image_has_the_pixels_of_the_encoded_one() -> None:
    pixels = random_pixels(2, 5, 5, 3)
    files = [(str(i), encoded(image)) for i, image in enumerate(pixels)]
    assert (decode_images("tiny", files, channels="colour", image_size=None) == pixels.transpose(0, 3, 1, 2)).all()


def test_grey_and_colour_are_converted_into_each_other() -> None:
    grey = random_pixels(1, 4, 4)[0]
    colour = decode_images("tiny", [("a", encoded(grey))], channels="colour", image_size=None)
    assert (colour == np.stack([grey] * 3)[None]).all()
    again = decode_images("tiny", [("a", encoded(colour[0].transpose(1, 2, 0)))], channels="grey", image_size=None)
    assert (again == grey[None, None]).all()


def test_images_are_resized_when_asked() -> None:
    files = [("a", encoded(random_pixels(1, 4, 4, 3)[0])), ("b", encoded(random_pixels(1, 9, 5, 3)[0]))]
    assert decode_images("tiny", files, channels="colour", image_size=6).shape == (2, 3, 6, 6)


def test_images_of_different_sizes_are_refused_otherwise() -> None:
    files = [("a", encoded(random_pixels(1, 4, 4, 3)[0])), ("b", encoded(random_pixels(1, 9, 5, 3)[0]))]
    with pytest.raises(DataError, match=r"tiny: images differ in size: b is 9 x 5, a is 4 x 4; set .*image_size"):
        decode_images("tiny", files, channels="colour", image_size=None)


def test_a_palette_with_transparency_is_read() -> None:
    image = Image.fromarray(random_pixels(1, 4, 4)[0]).convert("P")
    file = io.BytesIO()
    image.save(file, format="png", transparency=b"\x00\x80")
    assert decode_images("tiny", [("a", file)], channels="colour", image_size=None).shape == (1, 3, 4, 4)


def test_an_image_of_more_than_8_bits_is_refused() -> None:
    deep = encoded(random_pixels(1, 4, 4)[0].astype(np.uint16) * 257)
    with pytest.raises(DataError, match="a is not an image that can be read: its pixels have more than 8 bits"):
        decode_images("tiny", [("a", deep)], channels="grey", image_size=None)


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_a_truncated_image_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "half.png"
    path.write_bytes(png(random_pixels(1, 8, 8, 3)[0])[:keep])
    with pytest.raises(DataError, match=r"tiny: .*half\.png is not an image that can be read"):
        decode_images("tiny", [(str(path), path)], channels="colour", image_size=None)


def decode_one(file: io.BytesIO | Path, *, channels: str = "colour", image_size: int | None = None) -> np.ndarray:
    return decode_images("tiny", [("a.png", file)], channels=channels, image_size=image_size)


def test_postscript_is_no_image_and_runs_no_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = tmp_path / "gs"
    interpreter.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\necho 10.0\n")
    interpreter.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(DataError, match=r"a\.png is not an image that can be read: cannot identify image file"):
        decode_one(io.BytesIO(content), image_size=8)
    assert not (tmp_path / "ran").exists()


def test_a_photo_is_turned_upright() -> None:
    """Orientation 6 says that the first row is the right side: the image is turned by 90 degrees clockwise."""
    pixels, file, exif = random_pixels(1, 4, 6, 3)[0], io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(file, format="png", exif=exif)
    assert (decode_one(file)[0] == np.rot90(pixels, -1).transpose(2, 0, 1)).all()


def test_of_16_bit_colour_the_upper_8_bits_are_read() -> None:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row = b"\0" + struct.pack(">3H", 1, 300, 65535)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    file = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert decode_one(io.BytesIO(file)).ravel().tolist() == [0, 1, 255]


def test_an_image_of_far_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(DataError, match=r"a\.png is not an image that can be read: Image size \(25 pixels\) exceeds"):
        decode_one(encoded(random_pixels(1, 5, 5, 3)[0]))


def test_odd_tags_beside_the_pixels_are_nobodys_concern() -> None:
    """A second value of a tag that holds one: Pillow warns, and warnings are errors in these tests."""
    pixels, file = random_pixels(1, 4, 4, 3)[0], io.BytesIO()
    Image.fromarray(pixels).save(file, format="tiff")
    content = bytearray(file.getvalue())
    entry = content.index(struct.pack("<HH", 0x011C, 3))  # PlanarConfiguration, a short
    content[entry + 4 : entry + 8] = struct.pack("<I", 2)
    with pytest.warns(UserWarning, match="had too many entries"), Image.open(io.BytesIO(content)) as image:
        image.load()
    assert (decode_one(io.BytesIO(content))[0] == pixels.transpose(2, 0, 1)).all()


@pytest.mark.slow
def test_images_that_do_not_fit_in_memory_say_how_much_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """6,000 images of 3 x 3000 x 4000 bytes, which become float32 beside them: 6000 * 36e6 * 5 = 1,080e9 bytes."""
    image = encoded(np.zeros((3000, 4000, 3), np.uint8))

    def refuse(*arguments: object, **keywords: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "empty", refuse)
    told = "tiny: 6,000 images of 3000 x 4000 need 1,080 GB of memory: set data.options.image_size"
    with pytest.raises(DataError, match=told):
        decode_images("tiny", [("a", image)] * 6000, channels="colour", image_size=None)
