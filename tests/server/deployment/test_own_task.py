"""A regression of devices with data of their own, over a real SuperLink: as the same devices in one process.

That although what Flower starts for the first message is killed before the SuperNode has a reply, for which the
SuperNode would wait for ever; and with one whose file is bad and one that is away, which costs those two only.
"""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spatl.config.loading import load_config
from spatl.console.main import main
from spatl.deployment.processes import free_port
from spatl.json_files import read_json
from spatl.models.weights import read_weights
from spatl.runs.records import read_lines
from spatl.runs.status import read_status
from tests.support.deployments import started
from tests.support.own_data import own_config, serve_devices, unreadable
from tests.support.processes import until

pytestmark = pytest.mark.slow

CONFIG = own_config(
    method="spatl", task={"name": "regression", "metrics": ["mae", "r2"]}, rounds=3, selection={"selector": "update"},
    model={"name": "mlp", "options": {"hidden": [16]}}, partition={"name": "own", "num_clients": 4},
    training={"local_steps": 20, "learning_rate": 0.05}, server={"connect_timeout_seconds": 60.0},
)  # fmt: skip


def test_a_deployment_whose_messages_are_killed_learns_a_regression_as_one_process_does(tmp_path):
    """The scale that is agreed on, the weights to the bit, and each device's errors and those of all together.

    One client's program for its first message is killed, and the other's executor: both come back.
    """
    for client, offset in enumerate((0.0, 50.0)):
        draws = np.random.default_rng(client)
        inputs = draws.normal(size=(80, 5)).astype(np.float32)
        np.savez(tmp_path / f"{client}.npz", inputs=inputs, targets=(offset + 3 * inputs.sum(1)).astype(np.float32))
    unreadable(tmp_path / "2.npz")
    expected = serve_devices(CONFIG, tmp_path, absent=(3,))
    (tmp_path / "config.yaml").write_text(CONFIG.to_yaml())
    federation, address = tmp_path / "federation", f"127.0.0.1:{free_port()}"
    assert main(["deploy", "init", str(federation), str(tmp_path / "config.yaml"), "--address", address]) == 0
    with contextlib.ExitStack() as stack:
        log = tmp_path / "server.log"
        server = stack.enter_context(started("deploy", "server", str(federation / "server"), "--wait", "25", log=log))
        for client in range(3):
            command = ("deploy", "client", str(federation / f"client-{client}"))
            data, own = str(tmp_path / f"{client}.npz"), tmp_path / f"client-{client}.log"
            stack.enter_context(started(*command, "--data-dir", data, log=own))
        for client, victim in enumerate(("flwr-clientapp", "flower-superexec")):
            own = federation / f"client-{client}" / "flower"
            until((own / "running" / "flower-superexec").exists)
            _sabotage(own / "bin" / "flwr-clientapp", own / "running" / victim)
        assert server.wait(300.0) == 0, log.read_text()
    here, there = tmp_path / "run", federation / "server" / "run"
    assert load_config(there / "config.yaml").data.agreed == load_config(here / "config.yaml").data.agreed
    weights = [read_weights(run / "model" / "model.safetensors") for run in (here, there)]
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())
    summary = read_json(there / "summary.json")
    assert (summary["metric"], summary["clients"]) == ("mae", expected["clients"])
    assert summary["metrics"] == expected["metrics"]
    assert [row["metrics"] for row in read_lines(there / "history.jsonl")] == [
        row["metrics"] for row in read_lines(here / "history.jsonl")
    ]
    assert [row["participants"] for row in read_lines(there / "history.jsonl")] == [2, 2, 2]
    assert (there / "log.jsonl").read_text().count("it will be asked again") == 2
    questions = [
        (row["client"], row["direction"]) for row in read_lines(there / "ledger.jsonl") if row["phase"] == "query"
    ]
    for client in range(2):  # two questions, what it has and what was agreed on, the first of them twice
        assert (questions.count((client, "downlink")), questions.count((client, "uplink"))) == (3, 2)
        told = (tmp_path / f"client-{client}.log").read_text()
        assert told.count("waits for a process that is gone") == 1
    check_absent(federation, summary)


def check_absent(federation: Path, summary: Any) -> None:
    """Client 2's file is bad, client 3 is away: each is named with the reason, where each is looked for."""
    assert sorted(summary["absent"]) == ["2", "3"]
    assert "is not a file that numpy.savez wrote" in summary["absent"]["2"]
    assert "did not connect" in summary["absent"]["3"]
    told = (federation.parent / "server.log").read_text()
    assert "3 of 4 clients are connected, without client-3 (--wait); going on with those" in told
    assert "client 2 takes no part: npz: " in told
    own = (federation.parent / "client-2.log").read_text()
    assert "client 2 takes no part in this run: npz: " in own  # its owner sees why
    said = read_lines(federation / "server" / "run" / "log.jsonl")
    assert any("client 2 takes no part: npz: " in line["message"] for line in said if line.get("client") == 2)
    status = read_status(federation / "server")
    assert [client.absent is None for client in status.clients] == [True, True, False, False]


def _sabotage(path: Path, mark: Path) -> None:
    """Have a program kill itself, or another with a mark, when it is started for the first time."""
    original = path.with_name("original")
    path.rename(original)
    first_lines = "".join(original.read_text().splitlines(keepends=True)[:-1])
    path.write_text(f"{first_lines}mv '{original}' '{path}'\nkill -9 $(cat '{mark}')\nkill -9 $$\n")
    path.chmod(original.stat().st_mode)
