"""Augmentation of training batches: what each does, that it is drawn from the seed, and that only training sees it."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spatl.config.loading import parse_config
from spatl.errors import ConfigError, DataError, ModelError
from spatl.runner import run
from spatl.runs.directory import config_of
from spatl.tensors.inputs import NamedInputs
from spatl.training.augmentation import crop, flip, make_augmentation, noise
from tests.support.federations import history_without_seconds, tiny_config

HERE = "tests.spatl.training.test_augmentation:"


def images(number: int = 5, side: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(number, 2, side, side + 1, generator=torch.Generator().manual_seed(seed))


def drawn(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def doubled(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return 2 * inputs


def wider(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return torch.cat([inputs, inputs], dim=-1)


def raising(inputs: Tensor, generator: torch.Generator) -> Tensor:
    raise KeyError("angle")


@pytest.mark.slow
@given(st.integers(0, 1000), st.integers(4, 20))
def test_a_crop_is_the_image_moved_by_an_eighth_at_most(seed: int, side: int) -> None:
    before = images(3, side)
    after = crop(before, drawn(seed))
    for one, other in zip(before, after, strict=True):
        margin = max(1, side // 8), max(1, (side + 1) // 8)
        moves = [
            (down, right)
            for down in range(-margin[0], margin[0] + 1)
            for right in range(-margin[1], margin[1] + 1)
            if torch.equal(moved(one, down, right), other)
        ]
        assert moves


def moved(image: Tensor, down: int, right: int) -> Tensor:
    """The image moved, by a plain loop; zeros come in."""
    found = torch.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row + down < height and 0 <= column + right < width:
                found[:, row, column] = image[:, row + down, column + right]
    return found


@given(st.integers(0, 1000))
def test_a_flip_mirrors_some_images_and_leaves_others(seed: int) -> None:
    before = images(6)
    after = flip(before, drawn(seed))
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(2)) for a, b in zip(after, before, strict=True))


def test_of_many_images_half_are_mirrored_and_all_moves_occur() -> None:
    before = images(4000, 4)
    mirrored = (flip(before, drawn()) != before).flatten(1).any(1).float().mean()
    assert float(mirrored) == pytest.approx(0.5, abs=0.03)
    still = (crop(before, drawn()) == before).flatten(1).all(1).float().mean()
    assert float(still) == pytest.approx(1 / 9, abs=0.02)


def test_noise_has_a_tenth_of_a_deviation() -> None:
    added = noise(torch.zeros(200, 100), drawn())
    assert float(added.std()) == pytest.approx(0.1, abs=0.002)
    assert float(added.mean()) == pytest.approx(0.0, abs=0.002)


def test_one_after_the_other_and_the_same_for_the_same_generator() -> None:
    augment = make_augmentation(["flip", "crop", f"{HERE}doubled"])
    assert augment is not None
    expected = 2 * crop(flip(images(), draw := drawn(3)), draw)
    found = augment(images(), drawn(3))
    assert isinstance(found, Tensor)
    assert torch.equal(found, expected)
    assert make_augmentation([]) is None


@pytest.mark.parametrize(
    ("name", "inputs", "error", "message"),
    [
        ("crop", torch.rand(2, 3), DataError, r"crop is for images \[B, C, H, W\], got float32 \[2, 3\]"),
        ("flip", torch.rand(2, 3, 4), DataError, r"flip is for images"),
        ("noise", torch.ones(2, 3, dtype=torch.int64), DataError, r"noise is for inputs of one tensor of numbers"),
        ("noise", NamedInputs({"a": torch.rand(2, 3)}), DataError, r"got a float32 \[2, 3\]"),
        (
            f"{HERE}wider",
            torch.rand(2, 3),
            ModelError,
            r"must return inputs like .* got float32 \[2, 6\]",
        ),
        (f"{HERE}raising", torch.rand(2, 3), ModelError, r"failed on float32 \[2, 3\]: KeyError: 'angle'"),
    ],
)
def test_what_does_not_fit_is_one_line(name: str, inputs: Any, error: type[Exception], message: str) -> None:
    augment = make_augmentation([name])
    assert augment is not None
    with pytest.raises(error, match=message):
        augment(inputs, drawn())


def test_an_unknown_one_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"training\.augmentation.*unknown name 'flop' \(did you mean 'flip'\?\)"):
        parse_config({"training": {"augmentation": ["flop"]}})
    assert parse_config({"training": {"augmentation": "crop"}}).training.augmentation == ("crop",)


@pytest.mark.slow
def test_a_run_with_augmentation_is_repeatable_and_another_one_than_without(tmp_path: Any) -> None:
    def history(name: str, **training: Any) -> Any:
        config = tiny_config(rounds=2, training=training)
        return history_without_seconds(run(config, tmp_path / name, pictures=False).directory)

    first = history("first", augmentation=["crop", "noise"])
    assert history("second", augmentation=["crop", "noise"]) == first
    plain = history("plain")
    assert plain != first
    # What is evaluated on arrival in the first round was not augmented.
    assert plain[0]["accuracy"] == first[0]["accuracy"]
    assert config_of(tmp_path / "first").training.augmentation == ("crop", "noise")


def test_what_is_for_images_is_refused_for_a_table_before_anything_is_written(tmp_path: Any) -> None:
    data = (torch.rand(40, 3).numpy(), [0, 1] * 20)
    config = {
        "model": {"name": "mlp"},
        "training": {"augmentation": "flip"},
        "partition": {"name": "iid", "num_clients": 2},
    }
    with pytest.raises(DataError, match="flip is for images"):
        run(config, tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()
