"""A model that leaves a run: its files make the network again, and what is wrong with them is one clear line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from spatl import RunResult, read_run, run
from spatl.artifacts.description import read_description
from spatl.artifacts.model_files import read_model
from spatl.errors import ModelError, SpatlError
from spatl.training.evaluate import evaluate
from tests.support.federations import blueprint_of, of_users, tiny_config

RESNET = {"name": "resnet8", "options": {"width": 0.25}}
LOCAL = {"training": {"batch_norm": "local"}}
RUNS: dict[str, dict[str, Any]] = {
    "a network without BatchNorm": {},
    "aggregated statistics": {"model": RESNET},
    "float32 both ways": {"model": RESNET, "wire": {"uplink": "float32", "downlink": "float32"}},
    "statistics of each client": {"model": RESNET, **LOCAL},
    "statistics that travel": {"model": RESNET, "training": {"batch_norm": "shared"}},
    "a private predictor": {"method": "spatl-paper", "model": RESNET},
    "a private residual": {"predictor": {"mode": "residual"}, "model": RESNET},
    "fine-tuning": {"method": "fedavg-finetune", "model": RESNET},
    "training alone": {"method": "local", "model": RESNET},
    "one set of channels": {"method": "ssfl", "model": RESNET},
    "some clients": {"server": {"fraction_train": 0.4}, "model": RESNET},
    "privacy": {"method": "fedavg", "model": RESNET, "privacy": {"noise_multiplier": 0.1, "clip": 1.0}},
}


@pytest.mark.slow
@pytest.mark.parametrize("what", RUNS)
def test_every_reported_accuracy_follows_from_the_files(tmp_path: Path, what: str) -> None:
    config = tiny_config(rounds=2, **RUNS[what])
    result = run(config, tmp_path / "run", pictures=False, progress=False)
    for client in range(config.partition.num_clients):
        network = read_run(tmp_path / "run").model(client)
        examples = blueprint_of(config).client_data(client).test
        assert evaluate(network, examples).accuracy == result.summary["clients"][str(client)]
        assert not network.training


@pytest.fixture(scope="module")
def model_run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run with BatchNorm, whose model leaves it whole."""
    return run(tiny_config(model=RESNET), tmp_path_factory.mktemp("model") / "run", pictures=False, progress=False)


@pytest.mark.slow
def test_the_files_load_in_plain_pytorch_by_the_networks_own_names(model_run: RunResult) -> None:
    tensors = load_file(model_run.directory / "model" / "model.safetensors")
    network = blueprint_of(tiny_config(model=RESNET)).model
    own = network.state_dict()
    assert tensors.keys() == own.keys()
    assert all(tensors[name].shape == own[name].shape and tensors[name].dtype == own[name].dtype for name in own)
    mine = model_run.model().state_dict()
    assert all(torch.equal(mine[name], tensors[name]) for name in own)


@pytest.mark.slow
def test_the_description_says_what_goes_in_and_what_comes_out(model_run: RunResult) -> None:
    content = json.loads((model_run.directory / "model" / "model.json").read_text())
    assert content["input_shape"] == [1, 8, 8]
    assert content["class_names"] == [str(digit) for digit in range(10)]
    assert content["normalisation"] == {"means": [pytest.approx(4.889, abs=1e-3)], "scale": "channel",
                                        "deviations": [pytest.approx(6.02, abs=0.02)]}  # fmt: skip
    assert content["offset"]["strength"] == 1.0
    assert (content["statistics"], content["lacks"], content["round"], content["client"]) == ("aggregated", [], 3, None)
    assert content["accuracy"] == model_run.summary["accuracy"]
    assert read_description(model_run.directory / "model").export == {}


@pytest.mark.slow
def test_a_client_adds_its_own_class_frequencies(model_run: RunResult) -> None:
    """tau = 1: b_c = log(K (n_c + s) / (n + K s)), and the federation's model adds nothing."""
    config = tiny_config(model=RESNET)
    labels = blueprint_of(config).client_data(2).train.targets
    smoothing, counts = config.predictor.smoothing, torch.bincount(labels, minlength=10).double()
    expected = (10 * (counts + smoothing) / (len(labels) + 10 * smoothing)).log().float()
    images = blueprint_of(config).client_data(2).test.inputs
    torch.testing.assert_close(model_run.model(2)(images) - model_run.model()(images), expected.expand(len(images), 10))


@pytest.mark.slow
def test_what_each_client_has_of_its_own_is_in_no_model_of_all(tmp_path: Path) -> None:
    config = tiny_config(rounds=1, method="spatl-paper", model=RESNET, **LOCAL)
    result = run(config, tmp_path / "run", pictures=False, progress=False)
    lacks = read_description(tmp_path / "run" / "model").lacks
    assert {"fc.weight", "fc.bias", "norm.running_mean", "norm.running_var"} <= set(lacks)
    assert not set(lacks) & load_file(tmp_path / "run" / "model" / "model.safetensors").keys()
    with pytest.raises(SpatlError, match=r"lacks 'norm.running_mean'.* which each client has of its own.*say whose"):
        result.model()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FrozenBackbone", "norm_in_eval_mode", "in_data_parallel", "MixedDtypes"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_network_of_ones_own_is_made_again_with_what_no_state_dict_has(tmp_path: Path, name: str) -> None:
    config = of_users(name, rounds=1)
    result = run(config, tmp_path / "run", pictures=False, progress=False)
    assert (
        evaluate(result.model(0), blueprint_of(config).client_data(0).test).accuracy == result.summary["clients"]["0"]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "error", "line"),
    [
        (lambda model: (model / "model.json").unlink(), SpatlError, "holds no model: model.json is not there"),
        (lambda model: (model / "model.safetensors").unlink(), SpatlError, "there is no file"),
        (lambda model: (model / "model.safetensors").write_bytes(b"x" * 50), SpatlError, "is not as it was written"),
        (lambda model: (model / "model.json").write_text("{"), SpatlError, "cannot read"),
        (lambda model: (model / "model.json").write_text('{"format": 9}'), SpatlError, "of format 1, got 9"),
        (lambda model: changed(model, class_names=["a"] * 10), SpatlError, "a class is named twice"),
        (lambda model: changed(model, input_shape=[1, 8, 8, 8, 8]), SpatlError, "does not describe a model"),
        (lambda model: changed(model, normalisation={"means": [0], "deviations": [0]}), SpatlError, "normalisation"),
        (lambda model: changed(model, factory="resnet9"), ModelError, "did you mean 'resnet8'"),
        (
            lambda model: changed(model, options={"width": 0.5}),
            ModelError,
            r"'conv.weight' must be \[8, 1, 3, 3\], got \[4",
        ),
    ],
)
def test_what_is_wrong_with_a_model_is_one_line(
    tmp_path: Path, model_run: RunResult, change: Any, error: type[Exception], line: str
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in (model_run.directory / "model").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    read_model(model)
    change(model)
    with pytest.raises(error, match=line):
        read_model(model)


def changed(model: Path, **values: Any) -> None:
    """Change what a description says."""
    content = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps({**content, **values}))


@pytest.mark.slow
def test_an_unknown_client_is_answered_with_those_there_are(model_run: RunResult) -> None:
    with pytest.raises(SpatlError, match=r"no part of client 7: .*; there are clients 0, 1, 2, 3, 4"):
        model_run.model(7)
