"""Tests of what is predicted: the pixels are those that training saw."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatl.artifacts.inputs import Item, input_files, read_inputs
from spatl.data.images import decode_images
from spatl.errors import DataError

SHAPE = (3, 6, 8)


def items(*files: Path, shape: tuple[int, int, int] = SHAPE) -> list[Item]:
    return list(read_inputs(files, shape))


def picture(path: Path, size: tuple[int, int] = (11, 7), mode: str = "RGB") -> Path:
    """A file of noise, `size` wide and high."""
    channels = {"RGB": 3, "L": 1}[mode]
    values = np.random.default_rng(1).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    Image.fromarray(values if channels == 3 else values[:, :, 0]).save(path)
    return path


@pytest.mark.parametrize(("channels", "name"), [(1, "grey"), (3, "colour")])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_image_files_become_the_pixels_that_training_saw(tmp_path: Path, channels: int, name: str, mode: str) -> None:
    path = picture(tmp_path / "a.png", mode=mode)
    trained = decode_images("folder", [("a", path)], channels=name, image_size=6)
    [item] = items(path, shape=(channels, 6, 6))
    assert item.pixels is not None
    assert item.pixels.dtype == np.uint8
    assert np.array_equal(item.pixels, trained[0])


def test_a_folder_stands_for_all_images_below_it_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    files = [picture(tmp_path / "b" / "2.png"), picture(tmp_path / "a.jpg"), picture(tmp_path / ".hidden" / "3.png")]
    (tmp_path / "notes.txt").write_text("no image")
    assert input_files([str(tmp_path)]) == [files[1], files[0]]


@pytest.mark.parametrize("missing", ["nowhere.png", "empty"])
def test_what_is_not_there_is_named(tmp_path: Path, missing: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError, match=rf"{missing} (is not there: expected an image|holds no images: expected files)"
    ):
        input_files([str(tmp_path / missing)])


@pytest.mark.parametrize(
    ("array_shape", "names"),
    [((3, 6, 8), ["x.npy"]), ((2, 3, 6, 8), ["x.npy[0]", "x.npy[1]"]), ((1, 3, 6, 8), ["x.npy[0]"])],
)
def test_arrays_are_taken_as_they_are(tmp_path: Path, array_shape: tuple[int, ...], names: list[str]) -> None:
    values = np.random.default_rng(1).normal(size=array_shape)
    np.save(tmp_path / "x.npy", values)
    found = items(tmp_path / "x.npy")
    assert [Path(item.name).name for item in found] == names
    assert np.array_equal(
        np.stack([item.pixels for item in found if item.pixels is not None]), values.reshape(-1, *SHAPE)
    )


@pytest.mark.parametrize(("array_shape", "number"), [((5, 8, 8), 5), ((8, 8), 1), ((1, 8, 8), 1)])
def test_grey_arrays_need_no_dimension_for_their_channel(
    tmp_path: Path, array_shape: tuple[int, ...], number: int
) -> None:
    np.save(tmp_path / "x.npy", np.zeros(array_shape, dtype=np.uint8))
    found = items(tmp_path / "x.npy", shape=(1, 8, 8))
    assert [item.pixels.shape for item in found if item.pixels is not None] == [(1, 8, 8)] * number


def test_an_archive_of_several_arrays_has_one_called_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", labels=np.zeros(2), images=np.zeros((2, *SHAPE)))
    np.savez(tmp_path / "y.npz", labels=np.zeros(2), pixels=np.zeros((2, *SHAPE)))
    assert [item.error for item in items(tmp_path / "x.npz")] == ["", ""]
    assert "it holds labels, pixels, and none is called images" in items(tmp_path / "y.npz")[0].error


def test_what_cannot_be_used_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    values = np.zeros((3, *SHAPE))
    values[1, 0, 0, 0] = np.nan
    np.save(tmp_path / "nan.npy", values)
    np.save(tmp_path / "shape.npy", np.zeros((2, 3, 8, 6)))
    np.save(tmp_path / "text.npy", np.full(SHAPE, "a"))
    np.save(tmp_path / "object.npy", np.full(SHAPE, None), allow_pickle=True)
    names = ("broken.png", "nan.npy", "shape.npy", "text.npy", "object.npy")
    found = {Path(item.name).name: item.error for item in items(*(tmp_path / name for name in names))}
    assert found.keys() == {"broken.png", "nan.npy[0]", "nan.npy[1]", "nan.npy[2]", *names[2:]}
    assert "not an image that can be read" in found["broken.png"]
    assert found["nan.npy[0]"] == found["nan.npy[2]"] == ""
    assert found["nan.npy[1]"] == "its values must be finite and at most 1e+30 in size"
    assert found["shape.npy"] == "expected numbers [N, 3, 6, 8] or [3, 6, 8], got float64 [2, 3, 8, 6]"
    assert "expected numbers" in found["text.npy"]
    assert "not an array that can be read" in found["object.npy"]


def test_a_model_of_five_channels_takes_arrays_alone(tmp_path: Path) -> None:
    [item] = items(picture(tmp_path / "a.png"), shape=(5, 6, 8))
    assert item.error == "the model takes 5 channels, which no image file has; give arrays"
