"""What a config's model and data have to do with each other, before anything is trained."""

from pathlib import Path

import numpy as np
import pytest

from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config
from spatl.errors import ModelError
from spatl.rounds.blueprint import make_blueprint


def oblong(directory: Path, model: str) -> ExperimentConfig:
    """Sixty colour images, 8 high and 12 wide."""
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 8, 12), dtype=np.uint8)
    np.savez(directory / "oblong.npz", images=images, labels=np.arange(60) % 3)
    return parse_config({
        "data": {"name": "npz", "options": {"path": str(directory / "oblong.npz")}},
        "partition": {"name": "iid", "num_clients": 3},
        "model": {"name": model},
    })  # fmt: skip


def test_a_model_that_needs_squares_says_so(tmp_path: Path) -> None:
    told = r"images are 8 x 12; this model needs squares: set data\.options\.image_size \(the model fails on float32 "
    with pytest.raises(ModelError, match=told):
        make_blueprint(oblong(tmp_path, "cnn"))


@pytest.mark.slow
def test_a_model_that_takes_any_shape_takes_oblong_images(tmp_path: Path) -> None:
    assert make_blueprint(oblong(tmp_path, "resnet8")).dataset.inputs.shape == (60, 3, 8, 12)
