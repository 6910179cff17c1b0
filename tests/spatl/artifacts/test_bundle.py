"""Tests of the directory of an exported model."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from spatl.artifacts.bundle import Export, write_export
from spatl.artifacts.description import read_description
from spatl.artifacts.graphs import onnx_session, run_session
from spatl.errors import ConfigError, ModelError
from tests.spatl.artifacts.conftest import OFFSET
from tests.support import exports

FILES = {
    "card.json", "card.md", "model-int8.onnx", "model.json", "model.onnx", "model.pt2", "model.safetensors",
    "predict.py",
}  # fmt: skip


def expected(pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return exports.network()(exports.normalised(pixels)) + OFFSET


def share(found: torch.Tensor | np.ndarray, wanted: torch.Tensor) -> float:
    """The largest difference, as a share of the largest logit."""
    return float((torch.as_tensor(found) - wanted).abs().max() / wanted.abs().max())


@pytest.mark.slow
def test_the_directory_holds_these_files_and_nothing_is_left_beside_it(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == FILES
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_torch_program_takes_batches_of_any_size_and_adds_the_offset(exported: Path, batch: int) -> None:
    program = torch.export.load(exported / "model.pt2").module()
    pixels = exports.images(batch, seed=9)
    assert share(program(exports.normalised(pixels)).detach(), expected(pixels)) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_onnx_file_takes_batches_of_any_size_and_adds_the_offset(exported: Path, batch: int) -> None:
    pixels = exports.images(batch, seed=9)
    found = run_session(onnx_session(exported / "model.onnx"), exports.normalised(pixels).numpy())
    assert share(found, expected(pixels)) <= 1e-4


@pytest.mark.slow
def test_the_int8_file_computes_nearly_the_same_in_8_bits(exported: Path) -> None:
    pixels = exports.images(64, seed=9)
    found = run_session(onnx_session(exported / "model-int8.onnx"), exports.normalised(pixels).numpy())
    assert 1e-6 < share(found, expected(pixels)) <= 0.1
    kinds = {tensor.data_type for tensor in onnx.load(exported / "model-int8.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert (exported / "model-int8.onnx").stat().st_size < (exported / "model.onnx").stat().st_size


@pytest.mark.slow
def test_the_onnx_files_name_their_batch_and_hold_all_weights_themselves(exported: Path) -> None:
    for name in ("model.onnx", "model-int8.onnx"):
        model = onnx.load(exported / name, load_external_data=False)
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
        assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)


@pytest.mark.slow
def test_the_weights_are_the_networks_by_its_own_names(exported: Path) -> None:
    tensors, own = load_file(exported / "model.safetensors"), exports.network().state_dict()
    assert tensors.keys() == own.keys()
    assert all(torch.equal(tensors[name], own[name]) for name in own)


@pytest.mark.slow
def test_the_description_has_the_offset_and_the_checksum_of_the_weights(exported: Path) -> None:
    found = read_description(exported)
    assert found.export == {"label_offset": OFFSET.tolist(), "cut": None}
    assert found.sha256 == hashlib.sha256((exported / "model.safetensors").read_bytes()).hexdigest()
    assert found.named(export={}, sha256="") == exports.description()


@pytest.mark.slow
def test_the_card_names_every_file_with_its_checksum(exported: Path) -> None:
    card = json.loads((exported / "card.json").read_text())
    assert card["files"].keys() == FILES - {"card.json", "card.md"}
    for name, facts in card["files"].items():
        data = (exported / name).read_bytes()
        assert facts == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert facts["sha256"] in (exported / "card.md").read_text()


@pytest.mark.slow
def test_the_card_has_every_runtime_at_both_batch_sizes_and_the_accuracies(exported: Path) -> None:
    card = json.loads((exported / "card.json").read_text())
    runtimes = {"PyTorch, eager", "ONNX Runtime, float32", "ONNX Runtime, int8"}
    assert {(each["runtime"], each["batch"]) for each in card["latencies"]} == {
        (r, b) for r in runtimes for b in (1, 16)
    }
    assert all(each["milliseconds"] > 0 for each in card["latencies"])
    test = exports.labelled(20, seed=5)
    with torch.no_grad():
        right = ((exports.network()(test.inputs) + OFFSET).argmax(1) == test.targets).float().mean()
    assert card["accuracies"]["dense"]["PyTorch, eager"] == pytest.approx(float(right))
    assert card["accuracies"]["dense"].keys() == runtimes


@pytest.mark.slow
def test_no_file_holds_a_byte_of_an_image(tmp_path: Path) -> None:
    """Eight pixels of some rows of every fourth image, as read and as the network takes them.

    A weight and a buffer are views of the memory that the images lie in.
    """
    memory = torch.cat([exports.normalised(exports.images(32)).flatten(), torch.zeros(3)])
    network = exports.network()
    memory[-3:] = network.fc.bias.detach()
    network.fc.bias = nn.Parameter(memory[-3:])  # a view of the images' memory
    network.register_buffer("scale", memory[-3:])
    write_export(
        tmp_path / "model",
        Export(
            network, exports.description(), calibration=exports.normalised(exports.images(32)),
            test=exports.labelled(32), seconds=0.0,
        ),
    )  # fmt: skip
    rows = []
    for pixels in (exports.images(32), exports.normalised(exports.images(32))):
        rows += [run.numpy().tobytes() for run in pixels[::4, :, ::5, :8].reshape(-1, 8)]
    assert len(set(rows)) == len(rows) == 2 * 8 * 3 * 4
    for path in (tmp_path / "model").iterdir():
        data = path.read_bytes()
        assert not any(row in data for row in rows), path.name
    assert rows[-96] in memory.detach().numpy().tobytes()  # that they would be found


@pytest.mark.slow
def test_no_file_names_a_path_of_the_machine(exported: Path) -> None:
    paths = [os.fsencode(str(Path(__file__).parents[3])), os.fsencode(str(Path(torch.__file__).parent))]
    for path in exported.iterdir():
        assert not any(each in path.read_bytes() for each in paths), path.name


@pytest.mark.slow
def test_nothing_is_written_into_the_working_directory_nor_left_among_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    exports.write(tmp_path / "model")
    assert list((tmp_path / "here").iterdir()) == []
    assert [path for path in (tmp_path / "temporary").rglob("*") if path.is_file()] == []


def test_a_directory_that_holds_something_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty: give a new directory"):
        exports.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


@pytest.mark.slow
def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    exports.write(tmp_path, int8=False)
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"model-int8.onnx"}


class Flat(nn.Module):
    """A network of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 16 * 16, 3)


class Branching(Flat):
    """A network whose path depends on the values of the images: no graph can say it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.fc(images.flatten(1))
        return logits if float(images.mean()) > 0 else -logits


class Forking(Flat):
    """A network that exports without a complaint, and yet as something else: what it drops depends on the export."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.fc(images.flatten(1))
        return logits * (1.001 if torch.compiler.is_exporting() else 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "message"),
    [(Branching(), "torch.export cannot export the network"), (Forking(), r"differs from the network by 1.0e-03 of")],
)
def test_a_network_that_no_file_can_stand_for_leaves_nothing_behind(
    tmp_path: Path, network: nn.Module, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        write_export(tmp_path / "model", Export(network.eval(), exports.description()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_card_calls_a_slow_down_one_and_compares_with_the_dense_network(tmp_path: Path) -> None:
    """The network is called a cut of a smaller one here, so that it is slower than the dense."""
    small = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3)).eval()
    card = write_export(
        tmp_path / "model",
        Export(
            exports.network(), exports.description(), dense=small, seconds=0.0,
            cut={"whole": {"layer1": "nobody knows who reads it"}},
        ),
    )  # fmt: skip
    assert card.sizes["dense"].num_parameters == 3 * 16 * 16 * 3 + 3
    assert {each.network for each in card.latencies} == {"dense", "cut"}
    text = (tmp_path / "model" / "card.md").read_text()
    assert "x slower" in text
    assert "- layer1: nobody knows who reads it" in text
