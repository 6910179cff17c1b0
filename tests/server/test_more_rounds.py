"""A finished run that is given more rounds ends as one that was asked for them at once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from spatl.console.main import main
from spatl.errors import ConfigError
from spatl.runner import resume, run
from spatl.runs.checkpoint import load_checkpoint
from spatl.runs.records import read_lines
from tests.support.federations import COMPRESSED, DENSE, DITHERED, state_of, tiny_config, without_seconds

RESNET = {"name": "resnet8", "options": {"width": 0.25}}
SETTINGS: dict[str, dict[str, Any]] = {
    "all clients": {"wire": COMPRESSED},
    "some clients": {"wire": COMPRESSED, "server": {"fraction_train": 0.4}},
    "dither": {
        "wire": DITHERED,
        "model": RESNET,
        "training": {"batch_norm": "shared"},
        "server": {"fraction_train": 0.6},
    },
    "float32": {"wire": DENSE, "model": RESNET},
    "statistics put together": {"wire": COMPRESSED, "model": RESNET, "server": {"fraction_train": 0.6}},
    "a private predictor": {"method": "spatl-paper", "model": RESNET},
    "one set of channels": {"method": "ssfl"},
    "momentum of the server": {"method": "fedavgm", "wire": COMPRESSED},
    "error feedback": {"method": "powersgd", "server": {"fraction_train": 0.6}},
    "two moments of the server": {
        "method": "spatl",
        "server_optimizer": {"name": "yogi"},
        "server": {"learning_rate": 0.03},
        "wire": COMPRESSED,
    },
}


def told(directory: Path) -> dict[str, Any]:
    """What a run says of each round, but for what the evaluation after the last one adds to it."""
    kept = ("round", "accuracy", "loss", "train_loss", "participants", "keep_ratio", "encoder_fingerprint", "rejected")
    return {row["round"]: {name: row[name] for name in kept} for row in read_lines(directory / "history.jsonl")}


@pytest.mark.parametrize(
    "what", [pytest.param(each, marks=pytest.mark.slow) for each in SETTINGS if each != "all clients"] + ["all clients"]
)
def test_more_rounds_go_on_as_if_they_had_been_asked_for_at_once(tmp_path: Path, what: str) -> None:
    run(tiny_config(rounds=5, **SETTINGS[what]), tmp_path / "whole", pictures=False)
    run(tiny_config(rounds=3, **SETTINGS[what]), tmp_path / "longer", pictures=False)
    result = resume(tmp_path / "longer", rounds=5, pictures=False)
    assert told(tmp_path / "longer") == told(tmp_path / "whole")
    whole = json.loads((tmp_path / "whole" / "summary.json").read_text())
    same = ("accuracy", "accuracy_min", "loss", "clients", "rounds", "keep_ratio", "update_bytes")
    assert {name: result.summary[name] for name in same} == {name: whole[name] for name in same}
    models = [(tmp_path / each / "model" / "model.safetensors").read_bytes() for each in ("whole", "longer")]
    assert models[0] == models[1]
    for client in range(5):
        states = [state_of(tmp_path / each, client) for each in ("longer", "whole")]
        assert len({(each.control_round, each.pending_round) for each in states}) == 1
        assert torch.equal(states[0].control, states[1].control)
        assert torch.equal(states[0].pending_control, states[1].pending_control)
        assert all(torch.equal(states[0].private[name], each) for name, each in states[1].private.items())
    last = [load_checkpoint(tmp_path / each) for each in ("whole", "longer")]
    assert last[0] is not None
    assert last[1] is not None
    assert last[0].to_bytes() == last[1].to_bytes()
    assert without_seconds(result.history[-1]) == without_seconds(read_lines(tmp_path / "whole" / "history.jsonl")[-1])


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_command_takes_more_rounds_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tiny_config(rounds=1), tmp_path / "run", pictures=False)
    assert main(["run", "--resume", str(tmp_path / "run"), "--set", "seed=4"]) == 2
    assert "leave out --set seed=4" in " ".join(capsys.readouterr().err.split())
    assert main(["run", "--resume", str(tmp_path / "run"), "--set", "rounds=1"]) == 2
    assert "is a run of 1 rounds: rounds must be more than that, got 1" in " ".join(capsys.readouterr().err.split())
    assert main(["run", "--resume", str(tmp_path / "run"), "--set", "rounds=2"]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 2


@pytest.mark.slow
def test_a_run_of_before_there_were_models_is_not_gone_on_with(tmp_path: Path) -> None:
    """Its clients and its checkpoint are of after the evaluation, where c is not held any more."""
    run(tiny_config(rounds=1), tmp_path / "run", pictures=False)
    for file in (tmp_path / "run" / "model").iterdir():
        file.unlink()
    (tmp_path / "run" / "model").rmdir()
    with pytest.raises(ConfigError, match="finished by a version that kept no state to go on from"):
        resume(tmp_path / "run", rounds=2, pictures=False)
    assert (tmp_path / "run" / "summary.json").exists()
