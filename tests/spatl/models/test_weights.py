"""Weights to start from: taken by name, checked before anything is copied, and the same file in a run that goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatl import run
from spatl.errors import ModelError, SpatlError
from spatl.rounds.blueprint import make_blueprint
from spatl.runner import resume
from tests.support.federations import tiny_config

RESNET = {"name": "resnet8", "options": {"width": 0.25}}


def started_from(path: Path, **model: Any) -> Any:
    return tiny_config(rounds=1, model={**RESNET, **model, "weights": str(path)})


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of a network of the same kind, drawn from another seed."""
    network = make_blueprint(tiny_config(seed=77, model=RESNET)).model
    save_file({name: each.contiguous() for name, each in network.state_dict().items()}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


@pytest.mark.slow
def test_a_run_starts_from_them(weights: Path) -> None:
    given, blueprint = load_file(weights), make_blueprint(started_from(weights))
    for name, tensor in blueprint.layout.unflatten(blueprint.initial_encoder()).items():
        assert torch.equal(tensor, given[name])


@pytest.mark.slow
def test_a_run_goes_on_from_the_model_of_another(tmp_path: Path) -> None:
    """The first is measured after its two rounds; the second arrives with that accuracy before it has trained."""
    config = tiny_config(rounds=2, model=RESNET, wire={"uplink": "float32", "downlink": "float32"})
    first = run(config, tmp_path / "first", pictures=False, progress=False)
    model = {**RESNET, "weights": str(tmp_path / "first" / "model" / "model.safetensors")}
    second = run(
        config.model_copy(update={"model": type(config.model)(**model)}), tmp_path / "second", pictures=False,
        progress=False,
    )  # fmt: skip
    own = first.model().state_dict()
    assert all(torch.isfinite(each).all() for each in own.values())
    assert second.history[0]["accuracy"] == pytest.approx(first.summary["accuracy"], abs=0.1)  # statistics are its own
    assert (tmp_path / "second" / "config.yaml").read_text().count("weights_sha256") == 1


@pytest.mark.slow
def test_a_predictor_of_other_classes_starts_anew_with_a_warning(weights: Path, caplog: Any) -> None:
    tensors = load_file(weights)
    tensors["fc.weight"], tensors["fc.bias"] = torch.zeros(3, tensors["fc.weight"].shape[1]), torch.zeros(3)
    save_file(tensors, weights)
    network = make_blueprint(started_from(weights)).model
    assert torch.equal(network.state_dict()["conv.weight"], tensors["conv.weight"])
    assert network.get_submodule("fc").weight.any()
    assert "'fc.weight' has another shape there, so that the predictor starts from the seed" in caplog.text


@pytest.mark.slow
def test_what_is_not_in_the_file_is_drawn_from_the_seed(weights: Path) -> None:
    save_file({"norm.weight": load_file(weights)["norm.weight"] + 1}, weights)
    network, drawn = make_blueprint(started_from(weights)).model, make_blueprint(tiny_config(model=RESNET)).model
    assert torch.equal(network.state_dict()["conv.weight"], drawn.state_dict()["conv.weight"])
    assert torch.equal(network.state_dict()["norm.weight"], drawn.state_dict()["norm.weight"] + 1)


@pytest.mark.slow
def test_what_does_not_fit_is_one_line(weights: Path) -> None:
    tensors = load_file(weights)
    save_file({**tensors, "konv.weight": torch.zeros(1)}, weights)
    with pytest.raises(ModelError, match=r"holds 'konv.weight', which the network does not have"):
        make_blueprint(started_from(weights))
    save_file({**tensors, "conv.weight": torch.zeros(2, 1, 3, 3)}, weights)
    with pytest.raises(ModelError, match=r"'conv.weight' must be \[4, 1, 3, 3\], got \[2, 1, 3, 3\]"):
        make_blueprint(started_from(weights))
    weights.write_bytes(b"PK\x03\x04 a pickle in a zip")
    with pytest.raises(SpatlError, match="is no safetensors file, or it is damaged"):
        make_blueprint(started_from(weights))
    weights.unlink()
    with pytest.raises(SpatlError, match="there is no file"):
        run(started_from(weights), weights.parent / "run", progress=False)
    assert not (weights.parent / "run").exists()


@pytest.mark.slow
def test_a_run_does_not_go_on_from_other_weights_than_it_started_from(weights: Path) -> None:
    directory = weights.parent / "run"
    run(started_from(weights), directory, pictures=False, progress=False)
    save_file({name: each + 1 for name, each in load_file(weights).items()}, weights)
    with pytest.raises(SpatlError, match="is not as it was written: its SHA-256 is another"):
        resume(directory, rounds=2, pictures=False)
    assert (directory / "summary.json").exists()
