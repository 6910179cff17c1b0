"""Three devices on loopback with data of their own: unequal numbers, one without a class, one whose file is bad."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from spatl.artifacts.description import read_description
from spatl.artifacts.model_files import read_model
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import load_config
from spatl.console.main import main
from spatl.deployment.processes import free_port
from spatl.json_files import read_json
from spatl.models.weights import read_weights
from spatl.rounds.blueprint import make_blueprint
from spatl.runs.records import read_lines
from spatl.runs.status import read_status
from spatl.training.evaluate import evaluate
from tests.support.deployments import started
from tests.support.federations import tiny_config
from tests.support.own_data import NUMBERS, unreadable

pytestmark = pytest.mark.slow

_SECONDS = 300.0


@dataclass(frozen=True)
class Deployed:
    """A deployment that has ended: its federation's directory, and what each command said."""

    federation: Path
    logs: dict[str, str]

    @property
    def run(self) -> Path:
        return self.federation / "server" / "run"


def deployed(base: Path, config: ExperimentConfig, *, away: tuple[int, ...] = (), wait: float = 600.0) -> Deployed:
    """Run a config on devices whose data lie in `base`, all but those that are away."""
    (base / "config.yaml").write_text(config.to_yaml())
    federation, address = base / "federation", f"127.0.0.1:{free_port()}"
    assert main(["deploy", "init", str(federation), str(base / "config.yaml"), "--address", address]) == 0
    log = base / "server.log"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            started("deploy", "server", str(federation / "server"), "--wait", f"{wait:g}", log=log)
        )
        for client in set(range(len(NUMBERS))) - set(away):
            data, own = base / f"{client}.npz", base / f"client-{client}.log"
            stack.enter_context(
                started("deploy", "client", str(federation / f"client-{client}"), "--data-dir", str(data), log=own)
            )
        assert server.wait(_SECONDS) == 0, log.read_text()
    return Deployed(federation, {path.stem: path.read_text() for path in base.glob("*.log")})


def deployed_config(**sections) -> ExperimentConfig:
    values = {
        "data": {"name": "npz"}, "partition": {"name": "own", "num_clients": 3}, "rounds": 5, "method": "spatl",
        "selection": {"selector": "update"}, "training": {"local_steps": None, "local_epochs": 6},
        "server": {"connect_timeout_seconds": 5.0},
    }  # fmt: skip
    return tiny_config(**{**values, **sections})


def test_devices_with_data_of_their_own_train_on_all_of_it_and_end_well(devices):
    done = deployed(devices, deployed_config(model={"name": "resnet8", "options": {"width": 0.5}}))
    rows = read_lines(done.run / "clients.jsonl")
    assert {row["client"]: row["num_examples"] for row in rows} == {0: 120, 1: 72, 2: 36}  # 60 % of what each has
    summary = read_json(done.run / "summary.json")
    assert (summary["missing"], summary["rejected"], summary["not_evaluated"]) == (0, 0, 0)
    assert summary["accuracy"] > 0.8
    assert load_config(done.run / "config.yaml").data.agreed.classes == ("0", "1", "2", "3")
    assert not list((done.federation / "server").rglob("*.npz"))
    assert not list(done.federation.glob("client-*/flower/apps"))  # nothing of the app bundle was unpacked
    pinned = list(done.federation.glob("client-*/state/*/pinned.json"))
    assert {path.stat().st_mode & 0o777 for path in pinned} == {0o600}
    assert len(pinned) == 3
    check_models(done, devices, summary)


def check_models(done: Deployed, base: Path, summary: Any) -> None:
    """Each device has its own model, of the accuracy it reported, and the federation's weights, as the server has them.

    What each device has of its own, its offset and how many batches it saw, stays there.
    """
    config = load_config(done.run / "config.yaml")
    assert read_description(done.run / "model").class_names == ("0", "1", "2", "3")
    shared = read_weights(done.run / "model" / "model.safetensors")
    assert not list(done.run.rglob("private.safetensors"))
    for client, accuracy in summary["clients"].items():
        (state,) = (done.federation / f"client-{client}" / "state").glob("*/model")
        own = read_model(state)
        tensors = own.network.state_dict().items()
        assert all(torch.equal(each, shared[name]) for name, each in tensors if not name.endswith("_tracked"))
        options = {"path": str(base / f"{client}.npz")}
        here = config.model_copy(update={"data": config.data.model_copy(update={"options": options})})
        examples = make_blueprint(here).client_data(int(client)).test
        assert evaluate(own.with_offset_(), examples).accuracy == accuracy


def test_a_bad_file_and_a_device_that_is_away_cost_those_two_only(devices):
    unreadable(devices / "1.npz")
    done = deployed(devices, deployed_config(rounds=2), away=(2,), wait=25.0)
    summary = read_json(done.run / "summary.json")
    assert sorted(summary["absent"]) == ["1", "2"]
    assert "is not a file that numpy.savez wrote" in summary["absent"]["1"]
    assert "did not connect" in summary["absent"]["2"]
    assert [row["participants"] for row in read_lines(done.run / "history.jsonl")] == [1, 1]
    assert "2 of 3 clients are connected, without client-2 (--wait); going on with those" in done.logs["server"]
    assert "client 1 takes no part: npz: " in done.logs["server"]
    assert "client 1 takes no part in this run: npz: " in done.logs["client-1"]  # its owner sees why
    said = [line["message"] for line in read_lines(done.run / "log.jsonl") if line.get("client") == 1]
    assert any("client 1 takes no part: npz: " in line for line in said)
    status = read_status(done.federation / "server")
    assert [client.absent is None for client in status.clients] == [True, False, False]
