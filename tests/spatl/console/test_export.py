"""Tests of `spatl export`, on a run of three clients."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from spatl import read_run, run
from spatl.artifacts import export as exporting
from spatl.artifacts import runtimes
from spatl.artifacts.loader import Classifier
from spatl.artifacts.model_files import read_model
from spatl.console.main import main
from tests.support.federations import blueprint_of, tiny_config

CONFIG = {"rounds": 1, "partition": {"num_clients": 3}, "model": {"name": "resnet8", "options": {}}}


@pytest.fixture(scope="module")
def exported_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run, which nobody may change."""
    directory = tmp_path_factory.mktemp("export") / "run"
    run(tiny_config(**CONFIG), directory, pictures=False, progress=False)
    return directory


@pytest.fixture(autouse=True)
def _measured_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting.ExportRequest, "seconds", 0.0)


def logits_of(directory: Path, images: torch.Tensor) -> np.ndarray:
    """Of normalised images, by the exported program."""
    program = torch.export.load(directory / "model.pt2").module()
    return program(images).detach().numpy()


@pytest.mark.slow
def test_a_clients_model_is_exported_as_the_run_evaluated_it(
    exported_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(exported_run), "--client", "1", "--out", str(tmp_path / "model")]) == 0
    test = blueprint_of(tiny_config(**CONFIG)).client_data(1).test
    with torch.no_grad():
        expected = read_run(exported_run).model(1)(test.inputs).numpy()
    assert np.abs(logits_of(tmp_path / "model", test.inputs) - expected).max() <= 1e-5 * np.abs(expected).max()
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    reported = read_run(exported_run).summary["clients"]["1"]
    assert card["accuracies"] == {"dense": {"PyTorch, eager": reported, "ONNX Runtime, float32": reported}}
    output = capsys.readouterr().out
    assert str(tmp_path / "model" / "card.md") in output
    assert "dense, ONNX Runtime, float32" in output


@pytest.mark.slow
def test_a_cut_meets_its_budget_and_is_told_of_in_all_files(exported_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    arguments = ["export", str(exported_run), "--flops", "0.5", "--finetune", "1", "--int8", "--out", str(out)]
    assert main(arguments) == 0
    card, about = (json.loads((out / name).read_text()) for name in ("card.json", "model.json"))
    sizes = card["networks"]
    assert 0.3 < sizes["cut"]["macs"] / sizes["dense"]["macs"] <= 0.5
    assert {(each["network"], each["runtime"]) for each in card["latencies"]} == {
        (network, runtime)
        for network in ("dense", "cut")
        for runtime in ("PyTorch, eager", "ONNX Runtime, float32", "ONNX Runtime, int8")
    }
    cut = about["export"]["cut"]
    assert cut["budget"] == {"flops": 0.5}
    assert {name: len(channels) for name, channels in cut["kept"].items()} == cut["counts"]
    assert all(count % 8 == 0 or count == cut["sizes"][name] for name, count in cut["counts"].items())
    test = blueprint_of(tiny_config(**CONFIG)).client_data(0).test
    assert Classifier(out).class_names == tuple(map(str, range(10)))
    assert logits_of(out, test.inputs).shape == (len(test), 10)
    assert "4,096 examples of each split, from all 3 clients" in " ".join(card["notes"])


@pytest.mark.slow
def test_without_the_data_a_model_is_exported_and_says_so(
    exported_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(config: str) -> None:
        raise exporting.SpatlError("the data are elsewhere")

    monkeypatch.setattr(exporting, "cached_blueprint", missing)
    assert main(["export", str(exported_run), "--out", str(tmp_path / "model")]) == 0
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    assert card["accuracies"] == {}
    assert card["notes"] == ["No accuracy: the run's data are not here (the data are elsewhere)."]
    network = read_model(exported_run).network
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(noise).numpy()
    assert np.abs(logits_of(tmp_path / "model", noise) - expected).max() <= 1e-5 * np.abs(expected).max()
    capsys.readouterr()
    assert main(["export", str(exported_run), "--int8", "--out", str(tmp_path / "other")]) == 2
    assert capsys.readouterr().err == "spatl: the data are elsewhere\n"


@pytest.mark.slow
def test_a_budget_of_latency_is_met_in_onnx_runtime_and_the_card_says_so(
    exported_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if its time were a millisecond for a thousand parameters: the dense network has 78, some 40 are asked for."""
    monkeypatch.setattr(runtimes, "measure_onnx_latency", lambda network, images: _thousands(network))
    out = tmp_path / "model"
    assert main(["export", str(exported_run), "--latency-ms", "40", "--exact", "--out", str(out)]) == 0
    card, about = (json.loads((out / name).read_text()) for name in ("card.json", "model.json"))
    sizes = {name: each["num_parameters"] / 1000 for name, each in card["networks"].items()}
    assert sizes["cut"] <= 40 < sizes["dense"]
    assert about["export"]["cut"]["budget"] == {"latency_ms": 40.0}
    assert about["export"]["cut"]["latency"] == {
        "runtime": "ONNX Runtime, float32", "batch": 1, "dense_ms": sizes["dense"], "cut_ms": sizes["cut"],
    }  # fmt: skip
    assert any("was measured in ONNX Runtime, float32, one image on one thread: " in note for note in card["notes"])
    said = capsys.readouterr().out
    assert "latencies are those of ONNX Runtime, float32" in said
    assert f"network 1 of 10 at most takes {sizes['dense']:.3g} ms" in said


def _thousands(network: torch.nn.Module) -> float:
    return sum(each.numel() for each in network.parameters()) / 1000


def _copy(exported_run: Path, directory: Path, *, without: str) -> Path:
    shutil.copytree(exported_run, directory)
    path = directory / without
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["NOWHERE"], "holds no run: config.yaml is not there; give a directory that `spatl run` wrote"),
        (["UNFINISHED"], "has no model yet: it did not reach its last round; go on with it (spatl run --resume"),
        (["RUN", "--out", "RUN"], "is not empty: give a new directory (--out)"),
        (["RUN", "--client", "7"], "holds no part of client 7"),
        (["RUN", "--finetune", "1"], "--finetune goes with a cut: give --flops, --parameters or --latency-ms as well"),
        (["RUN", "--exact"], "--exact goes with a cut"),
        (["RUN", "--flops", "0.5", "--finetune", "-1"], "epochs to fine-tune must be 0 or more, got -1"),
        (["RUN", "--flops", "1.5"], "1.5"),
        (["RUN", "--flops", "0.0001"], "0.0001"),
        (["RUN", "--flops", "0.5", "--parameters", "0.5"], "--parameters: not allowed with argument --flops"),
        (["RUN", "--flops", "half"], "invalid float value: 'half'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    exported_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    places = {"RUN": str(exported_run), "NOWHERE": str(tmp_path)}
    if "UNFINISHED" in arguments:
        places["UNFINISHED"] = str(_copy(exported_run, tmp_path / "unfinished", without="model"))
    before = sorted(exported_run.rglob("*"))
    try:
        status: object = main(["export", *(places.get(each, each) for each in arguments)])
    except SystemExit as ended:
        status = ended.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.count("\n") == 1
    assert message in error
    assert sorted(exported_run.rglob("*")) == before


@pytest.mark.slow
def test_a_missing_package_is_named_with_its_extra(
    exported_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", str(exported_run)]) == 2
    assert capsys.readouterr().err == (
        "spatl: exporting a model needs onnx, onnxscript and onnxruntime (onnx is missing): "
        "pip install 'spatl[export]'\n"
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the system's limit of a file's size")
def test_a_program_that_does_not_fit_on_the_disk_is_one_line_and_ends_no_process(
    exported_run: Path, tmp_path: Path
) -> None:
    """By the system's own limit of a file, which stands for a disk that is full."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    done = subprocess.run(
        [sys.executable, "-m", "spatl", "export", str(exported_run), "--out", str(tmp_path / "model")],
        capture_output=True, text=True, preexec_fn=limit, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == f"spatl: cannot write {tmp_path / 'model'}: File too large"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_name_that_is_too_long_is_one_line(
    exported_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(exported_run), "--out", str(tmp_path / ("x" * 300))]) == 2
    assert capsys.readouterr().err.endswith("the name is too long: give a shorter one\n")
