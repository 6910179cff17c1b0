"""`spatl onboard`: what it prints, writes and refuses, and that nothing is sent."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spatl
from spatl.artifacts.model_files import read_model
from spatl.artifacts.newcomers import newcomers_dataset, newcomers_splits
from spatl.artifacts.unfinished import unfinished_model
from spatl.config.loading import load_config
from spatl.console.main import main
from spatl.data import load_dataset
from spatl.deployment.sites import ServerSite, write_run, write_site
from tests.support.federations import tiny_config
from tests.support.stopped import stopped_after

FEDERATIONS = 900  # digits of the federation; the others are a newcomer's


def write_digits(path: Path, rows: slice) -> str:
    digits = load_dataset("digits", seed=1)
    assert digits.normalisation is not None
    pixels = digits.inputs * digits.normalisation.deviations[0] + digits.normalisation.means[0]
    np.savez(path, images=pixels.round().numpy().astype(np.uint8)[rows], labels=digits.targets.numpy()[rows])
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on half of the digits."""
    directory = tmp_path_factory.mktemp("onboard")
    data = {"name": "npz", "options": {"path": write_digits(directory / "federation.npz", slice(FEDERATIONS))}}
    model = {"name": "resnet8", "options": {"width": 0.25}}
    config = tiny_config(rounds=2, data=data, training={"batch_norm": "aggregated"})
    config = spatl.parse_config({**config.model_dump(), "model": model})
    return spatl.run(config, directory / "run", pictures=False, warn=False).directory


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Forty digits that the federation has not seen."""
    return write_digits(tmp_path / "new.npz", slice(FEDERATIONS, FEDERATIONS + 40))


@pytest.mark.slow
def test_it_prints_the_ways_and_writes_a_model_that_does_as_it_says(
    run: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is the federation's to the bit, and no connection is made."""

    def connect(*arguments: Any) -> None:
        raise AssertionError(f"a connection to {arguments}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket.socket, "sendto", connect)
    out = tmp_path / "mine"
    assert main(["onboard", str(run), "--data", data, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a newcomer with 24 training, 6 validation and 10 test examples, after round 2"
    assert lines[2].startswith("trains nothing")
    assert lines[2].endswith("yes")
    assert lines[3].startswith("own statistics")
    assert lines[4:] == ["fine-tuning is tried from 100 examples on", "sent to anyone: 0 bytes", str(out)]
    told = json.loads((out / "onboard.json").read_text())
    assert told["taken"] == "trains nothing"
    assert (told["uplink_bytes"], told["round"], told["run_is_over"]) == (0, 2, True)
    assert told["examples"] == {"train": 24, "validation": 6, "test": 10}
    assert (out / "model.safetensors").read_bytes() == (run / "model" / "model.safetensors").read_bytes()

    model = read_model(out)
    dataset = newcomers_dataset("npz", {"path": data}, model.description)
    test = newcomers_splits(dataset, load_config(run / "config.yaml"), client=5, seed=3).test
    with torch.no_grad():
        correct = model.with_offset_()(test.inputs).argmax(1) == test.targets
    assert model.description.client == 5
    assert model.description.accuracy == told["rows"][0]["accuracy"] == float(correct.double().mean())
    assert sum(told["training_examples_by_class"].values()) == 24


@pytest.mark.slow
def test_from_a_hundred_examples_on_fine_tuning_is_offered_unless_it_is_declined(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_digits(tmp_path / "new.npz", slice(FEDERATIONS, FEDERATIONS + 100))
    assert main(["onboard", str(run), "--data", data, "--out", str(tmp_path / "a")]) == 0
    offered = capsys.readouterr().out
    assert main(["onboard", str(run), "--data", data, "--no-finetune", "--out", str(tmp_path / "b")]) == 0
    declined = capsys.readouterr().out
    assert "fine-tuned" in offered
    assert "new head on the frozen encoder" in offered
    assert "from scratch" not in offered
    assert "fine-tun" not in declined
    assert "new head" not in declined


@pytest.mark.slow
def test_the_model_alone_is_enough_and_yardsticks_are_trained_where_asked_for(
    run: Path, data: str, tmp_path: Path
) -> None:
    arguments = ["onboard", str(run / "model"), "--data", data, "--compare", "--out", str(tmp_path / "mine")]
    assert main(arguments) == 0
    names = ["trains nothing", "own statistics", "new head on the frozen encoder", "from scratch"]
    rows = json.loads((tmp_path / "mine" / "onboard.json").read_text())["rows"]
    assert [row["name"] for row in rows] == names
    assert [row["trains"] for row in rows] == [False, False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "--data", "digits"], "nowhere holds no model: model.json is not there"),
        (["RUN", "--data", "nowhere"], "--data must be a folder of class folders, an .npz file or a data set"),
        (["RUN", "--data", "FEW"], "9 examples are too few for a newcomer: 6 for training, 1 for validation and 2 for"),
        (["RUN", "--data", "UNKNOWN"], "1 classes of the data here are none of those that the clients have agreed on:"),
        (["RUN", "--data", "digits", "--data-option", "size"], "--data-option must be KEY=VALUE, e.g. image_size=32"),
        (["RUN", "--data", "digits", "--data-option", "size=4"], "data set 'digits' has no option 'size'"),
        (["RUN", "--data", "digits", "--device", "abacus"], "training.device"),
        (["RUN", "--data", "digits", "--out", "RUN"], "is already there and not empty"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], said: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"RUN": str(run), "FEW": write_digits(tmp_path / "few.npz", slice(9))}
    np.savez(tmp_path / "unknown.npz", images=np.zeros((20, 8, 8), dtype=np.uint8), labels=np.array(["cat"] * 20))
    places["UNKNOWN"] = str(tmp_path / "unknown.npz")
    assert main(["onboard", *(places.get(argument, argument) for argument in arguments)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("spatl: ")]
    assert len(errors) == 1
    assert said in errors[0]


@pytest.mark.slow
def test_a_run_that_is_not_over_gives_its_model_and_both_lines_say_after_which_round(
    run: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped_after(1, load_config(run / "config.yaml"), tmp_path / "stopped")
    found = unfinished_model(tmp_path / "stopped", version="0")
    assert found is not None
    out = tmp_path / "mine"
    assert main(["onboard", str(tmp_path / "stopped"), "--data", data, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("test examples, after round 1")
    assert lines[5].startswith("the run is not over: this is its model after round 1 of 2; BatchNorm statistics are")
    told = json.loads((out / "onboard.json").read_text())
    assert (told["round"], told["run_is_over"]) == (1, False)
    mine = read_model(out)
    weights = mine.network.state_dict()
    others = {name for name, tensor in found.tensors.items() if not torch.equal(weights[name], tensor)}
    assert all(name.endswith("num_batches_tracked") for name in others)  # that of the newcomer's own statistics
    assert (mine.description.round, mine.description.statistics) == (1, "client")


@pytest.mark.slow
def test_a_run_in_its_first_round_is_one_line(
    run: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    assert main(["onboard", str(tmp_path), "--data", data]) == 2
    error = capsys.readouterr().err
    assert f"no round of the run in {tmp_path} is over, and it has no model yet" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_of_a_deployment_it_says_what_further_rounds_need(
    run: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the server's directory, whose run lies below, or of that run."""
    site = tmp_path / "server"
    copy = shutil.copytree(run, site / "run")
    write_site(site, ServerSite("127.0.0.1:9092", 5))
    write_run(copy, "20260101-000000-ab", site)
    for place, out in ((copy, "a"), (site, "b")):
        assert main(["onboard", str(place), "--data", data, "--out", str(tmp_path / out)]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith(f"to take part in further rounds: spatl deploy add-client {site} on the server")


@pytest.mark.slow
def test_what_onboards_loads_nothing_that_could_send() -> None:
    code = (
        "import sys, spatl.console.onboard, spatl.models.build\n"
        "bad = {'flwr', 'grpc', 'requests', 'httpx', 'urllib3'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
