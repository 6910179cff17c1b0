"""Images as MNIST, EMNIST and FEMNIST have them: 28 x 28 and grey, from a user's own arrays."""

import json
from pathlib import Path

import numpy as np
import pytest

from spatl.methods import METHODS
from tests.support.federations import blueprint_of, run_tiny, tiny_config
from tests.support.formats import random_pixels


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 images of four classes, which differ in how bright they are."""
    path = tmp_path_factory.mktemp("grey") / "grey.npz"
    labels = np.arange(64) % 4
    images = (random_pixels(64, 28, 28) // 4 + 48 * labels[:, None, None]).astype(np.uint8)
    np.savez(path, images=images, labels=labels)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_grey_images_of_28_pixels_and_refuses_nothing(method, grey, tmp_path):
    """The default network: each of its 3,136 channels behind the flattening carries 49 of the hidden layer's inputs."""
    config = tiny_config(
        method=method,
        rounds=2,
        data={"name": "npz", "options": {"path": str(grey)}},
        partition={"num_clients": 2},
        model={"name": "cnn", "options": {"channels": [32, 64], "hidden": 32}},
        training={"local_steps": 1, "batch_size": 8, "learning_rate": 0.01},
    )
    summary = run_tiny(config, tmp_path)
    assert (summary["rounds"], summary["rejected"], summary["missing"]) == (2, 0, 0)
    assert summary["accuracy"] is not None
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [row["participants"] for row in rows] == [2, 2]
    for row in rows:
        assert 0 < row["flops_ratio"] <= 1
        if not (config.row.selects or config.row.static_mask):
            assert row["flops_ratio"] == row["keep_ratio"] == 1.0
    assert blueprint_of(config).dataset.inputs.shape == (64, 1, 28, 28)
