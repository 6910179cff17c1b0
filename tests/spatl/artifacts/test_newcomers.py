"""A newcomer's data: read from where they lie, with the federation's classes and on its scale."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spatl.artifacts.description import ModelDescription
from spatl.artifacts.newcomers import newcomers_config, newcomers_dataset, newcomers_splits, source_of
from spatl.config.loading import parse_config
from spatl.data import load_dataset
from spatl.data.normalisation import Normalisation
from spatl.errors import ConfigError, DataError

CONFIG = parse_config({"data": {"name": "digits"}})


def described(**changes: Any) -> ModelDescription:
    description = ModelDescription(
        factory="resnet8", options={}, seed=1, cut=("fc",), residual=False, predictor="calibrated",
        class_names=("cat", "dog", "owl"), input_shape=(1, 4, 4), normalisation=Normalisation((10.0,), (5.0,)),
        offset=None, statistics="aggregated", lacks=(), method="spatl", data="folder", round=3, client=None,
        accuracy=None, versions={}, encoder="",
    )  # fmt: skip
    return description.named(**changes)


def write_arrays(path: Path, labels: list[str], value: int = 20) -> str:
    np.savez(path, images=np.full((len(labels), 4, 4), value, dtype=np.uint8), labels=np.array(labels))
    return str(path)


def read(path: str, description: ModelDescription | None = None) -> Any:
    return newcomers_dataset("npz", {"path": path}, description or described())


def test_classes_are_matched_by_name_and_pixels_scaled_as_the_federations(tmp_path: Path) -> None:
    """(20 - 10) / 5 = 2, though all of the newcomer's own pixels are alike."""
    dataset = read(write_arrays(tmp_path / "a.npz", ["owl", "cat", "owl"]))
    assert dataset.targets.tolist() == [2, 0, 2]
    assert dataset.class_names == ("cat", "dog", "owl")
    assert torch.equal(dataset.inputs, torch.full((3, 1, 4, 4), 2.0))


def test_a_single_class_is_enough(tmp_path: Path) -> None:
    assert read(write_arrays(tmp_path / "a.npz", ["dog", "dog"])).targets.tolist() == [1, 1]


def test_a_source_that_scales_its_values_in_any_case_is_brought_to_the_federations_scale() -> None:
    digits = load_dataset("digits", seed=1)
    own = digits.normalisation
    assert own is not None
    description = described(
        class_names=tuple(map(str, range(10))), input_shape=(1, 8, 8), normalisation=Normalisation((0.0,), (1.0,))
    )
    pixels = newcomers_dataset("digits", {}, description).inputs
    torch.testing.assert_close(pixels, digits.inputs * own.deviations[0] + own.means[0])
    torch.testing.assert_close(pixels, pixels.round(), atol=1e-4, rtol=0)
    same = newcomers_dataset("digits", {}, description.named(normalisation=own)).inputs
    torch.testing.assert_close(same, digits.inputs)


@pytest.mark.parametrize(
    ("labels", "changes", "said"),
    [
        (["cat", "fox"], {}, "1 classes of the data here are none of those that the clients have agreed on: fox"),
        (
            ["cat", "dog"],
            {"input_shape": (1, 8, 8)},
            "takes images of 1 x 8 x 8 (channels x height x width), got 1 x 4",
        ),
        (["cat", "dog"], {"normalisation": None}, "nothing says how pixels become such"),
    ],
)
def test_what_does_not_fit_the_model_is_named(
    labels: list[str], changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        read(write_arrays(tmp_path / "a.npz", labels), described(**changes))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_splits_are_the_runs_fractions_and_two_examples_each_at_least(tmp_path: Path) -> None:
    """Of 40 examples 0.15 and 0.25 are 6 and 10; of 9 they are 1 and 2, and of 10 2 and 2."""
    labels = ["cat", "dog"] * 20
    data = newcomers_splits(read(write_arrays(tmp_path / "a.npz", labels)), CONFIG, client=20, seed=1)
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 6, 10)
    ten = newcomers_splits(read(write_arrays(tmp_path / "b.npz", labels[:10])), CONFIG, client=20, seed=1)
    assert (len(ten.train), len(ten.validation), len(ten.test)) == (6, 2, 2)
    for few in (1, 9):
        with pytest.raises(DataError, match=f"{few} examples are too few for a newcomer: .*; bring 10 or more"):
            newcomers_splits(read(write_arrays(tmp_path / "c.npz", labels[:few])), CONFIG, client=20, seed=1)


def test_splits_that_the_data_came_with_are_kept_and_must_be_large_enough(tmp_path: Path) -> None:
    def written(name: str, num_test: int) -> str:
        images = np.zeros((30, 4, 4), dtype=np.uint8)
        labels = np.array(["cat", "dog"] * 15)
        np.savez(tmp_path / name, x_train=images, y_train=labels, x_test=images[:num_test], y_test=labels[:num_test])
        return str(tmp_path / name)

    data = newcomers_splits(read(written("a.npz", 7)), CONFIG, client=20, seed=1)
    assert len(data.test) == 7
    with pytest.raises(DataError, match="1 for test, expected at least 2"):
        newcomers_splits(read(written("b.npz", 1)), CONFIG, client=20, seed=1)


def write_folder(path: Path) -> None:
    for name, grey in (("dog", 30), ("owl", 40)):
        (path / name).mkdir(parents=True)
        Image.new("L", (9, 7), grey).save(path / name / "one.png")


def test_a_folder_is_read_at_the_size_and_in_the_colours_that_the_model_takes(tmp_path: Path) -> None:
    write_folder(tmp_path / "own")
    name, options = source_of(str(tmp_path / "own"), {}, described(), CONFIG)
    assert (name, options) == ("folder", {"path": str(tmp_path / "own"), "channels": "grey", "image_size": 4})
    dataset = newcomers_dataset(name, options, described())
    assert dataset.inputs[:, 0, 0, 0].tolist() == [4.0, 6.0]  # of pixels 30 and 40
    assert dataset.targets.tolist() == [1, 2]


def test_options_of_the_run_hold_where_the_source_is_the_same_and_a_users_own_go_first(tmp_path: Path) -> None:
    options = {"path": "/elsewhere", "channels": "grey", "image_size": 4, "pool": True}
    config = parse_config({"data": {"name": "folder", "options": options}})
    found = source_of(str(tmp_path), {"image_size": 8}, described(), config)
    assert found == ("folder", {"path": str(tmp_path), "channels": "grey", "image_size": 8})


def test_what_data_may_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.npz").touch()
    assert source_of(str(tmp_path / "a.npz"), {}, described(), CONFIG) == ("npz", {"path": str(tmp_path / "a.npz")})
    assert source_of("digits", {}, described(), CONFIG) == ("digits", {})
    assert source_of("my.module:load", {"a": 1}, described(), CONFIG) == ("my.module:load", {"a": 1})
    with pytest.raises(ConfigError, match=r"folder of class folders, an \.npz file or a data set .*, got 'nowhere'"):
        source_of("nowhere", {}, described(), CONFIG)


def test_without_the_runs_config_the_methods_defaults_hold(tmp_path: Path) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    assert newcomers_config(tmp_path / "run", described()) == parse_config({"method": "spatl"})
    (tmp_path / "run" / "config.yaml").write_text("data: {name: digits, test_fraction: 0.4}\n")
    for directory in (tmp_path / "run", tmp_path / "run" / "model"):
        assert newcomers_config(directory, described()).data.test_fraction == 0.4
