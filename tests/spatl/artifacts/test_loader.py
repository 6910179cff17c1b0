"""Tests of the loader, which is copied beside every exported model and needs NumPy and ONNX Runtime alone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from spatl.artifacts.loader import Classifier
from tests.spatl.artifacts.conftest import OFFSET
from tests.support import exports

ALONE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "spatl", "onnx", "safetensors", "PIL", "rich"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    with torch.no_grad():
        logits = exports.network()(exports.normalised(exports.images(5, seed=9))) + OFFSET
    return logits.softmax(1).numpy()


@pytest.mark.slow
def test_probabilities_are_those_of_the_network_with_its_offset(exported: Path, expected: np.ndarray) -> None:
    classifier = Classifier(exported)
    assert classifier.class_names == exports.CLASSES
    assert classifier.input_shape == (3, 16, 16)
    found = classifier.probabilities(exports.images(5, seed=9).numpy())
    assert np.allclose(found, expected, atol=1e-5)
    assert np.allclose(found.sum(1), 1, atol=1e-12)


@pytest.mark.slow
def test_pixels_become_the_very_numbers_of_training(exported: Path) -> None:
    pixels = exports.images(5, seed=9)
    assert np.array_equal(Classifier(exported).normalised(pixels.numpy()), exports.normalised(pixels).numpy())


@pytest.mark.slow
def test_the_copy_runs_where_nothing_else_can_be_imported(exported: Path, expected: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", exports.images(5, seed=9).numpy())
    code = ALONE + "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported / "predict.py"), str(tmp_path / "pixels.npy")],
        cwd=tmp_path, capture_output=True, text=True, env={"PATH": ""}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [name for name, _ in rows] == [exports.CLASSES[each] for each in expected.argmax(1)]
    assert [float(share) for _, share in rows] == pytest.approx(expected.max(1), abs=1e-3)


@pytest.mark.slow
def test_the_copy_is_the_loader(exported: Path) -> None:
    assert (exported / "predict.py").read_text() == Path(sys.modules[Classifier.__module__].__file__ or "").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((1, 3, 16, 15)), r"images must be \[N, 3, 16, 16\], got \[1, 3, 16, 15\]"),
        (np.zeros((3, 16, 16)), r"got \[3, 16, 16\]"),
        (np.full((1, 3, 16, 16), np.nan), "images must be finite, got NaN or infinity"),
    ],
)
def test_what_is_no_image_is_refused(exported: Path, pixels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classifier(exported).logits(pixels)


@pytest.mark.slow
def test_a_model_that_is_not_there_or_damaged_is_named(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no exported model of this kind: model.json is"):
        Classifier(tmp_path)
    (tmp_path / "model.json").write_bytes((exported / "model.json").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"model-int8.onnx is not there"):
        Classifier(tmp_path, int8=True)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"model.onnx cannot be read"):
        Classifier(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({"input_shape": [3, 16], "class_names": []}))
    with pytest.raises(ValueError, match=r"model.json does not describe a model"):
        Classifier(tmp_path)
