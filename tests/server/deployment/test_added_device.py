"""A device that comes to a federation of two on loopback: it onboards, waits for the server, and takes part."""

import contextlib
from pathlib import Path

import pytest
import torch

from spatl.artifacts.description import read_description
from spatl.config.loading import load_config
from spatl.console.main import main
from spatl.deployment.processes import free_port, stop
from spatl.deployment.sites import run_name
from spatl.json_files import read_json
from spatl.models.weights import read_weights
from spatl.runs.records import read_lines
from tests.support.deployments import await_text, await_that, started
from tests.support.own_data import check_devices_control, own_config, serve_devices, write_data

pytestmark = pytest.mark.slow

SECONDS = 300.0
CONFIG = own_config(
    method="spatl", rounds=5, selection={"selector": "update"}, partition={"name": "own", "num_clients": 2},
    server={"connect_timeout_seconds": 60.0},
)  # fmt: skip


def test_a_newcomer_onboards_from_a_run_that_was_stopped_and_takes_part_when_it_goes_on(tmp_path: Path) -> None:
    """The server is stopped once a round is over; then client 2 is added and started, and waits for it.

    What client 2 onboards with is the model of a run of so many rounds; then all three are in each further round.
    """
    for client, number in enumerate((200, 120, 100)):
        write_data(tmp_path / f"{client}.npz", number, range(4), seed=client)
    (tmp_path / "config.yaml").write_text(CONFIG.to_yaml())
    federation, address = tmp_path / "federation", f"127.0.0.1:{free_port()}"
    assert main(["deploy", "init", str(federation), str(tmp_path / "config.yaml"), "--address", address]) == 0
    site, run = federation / "server", federation / "server" / "run"
    with contextlib.ExitStack() as stack:

        def start(client: int):
            log = tmp_path / f"client-{client}.log"
            command = ("deploy", "client", str(federation / f"client-{client}"))
            return stack.enter_context(started(*command, "--data-dir", str(tmp_path / f"{client}.npz"), log=log))

        log = tmp_path / "server.log"
        server = stack.enter_context(started("deploy", "server", str(site), log=log))
        await_text("0 of 2 clients are connected", log, server, seconds=SECONDS)
        start(0)
        start(1)
        await_that((run / "server.checkpoint").exists, server, seconds=SECONDS, told=log.read_text)
        stop(server)
        assert not (run / "summary.json").exists()
        assert main(["deploy", "add-client", str(federation)]) == 0
        await_text("waiting: ", tmp_path / "client-2.log", start(2), seconds=SECONDS)
        told = onboarded(site, tmp_path)
        again = tmp_path / "server-again.log"
        command = ("deploy", "server", str(site), "--resume", "--set", "rounds=7")
        server = stack.enter_context(started(*command, log=again))
        assert server.wait(SECONDS) == 0, again.read_text()
    config = load_config(run / "config.yaml")
    assert (config.rounds, config.partition.num_clients) == (7, 3)
    summary = read_json(run / "summary.json")
    assert (summary["num_clients"], summary["missing"], summary["rejected"], "absent" in summary) == (3, 0, 0, False)
    before = told["round"]
    expected = [2] * before + [3] * (7 - before)
    assert [row["participants"] for row in read_lines(run / "history.jsonl")] == expected
    rounds = [row["round"] for row in read_lines(run / "clients.jsonl") if row["client"] == 2]
    assert rounds == list(range(before + 1, 8))
    sent = [(row["round"], row["phase"]) for row in read_lines(run / "ledger.jsonl") if row["client"] == 2]
    assert (before + 1, "query") in sent
    assert {each for each, phase in sent if phase == "train"} == set(rounds)
    name = run_name(run)
    assert name is not None
    states = {client: federation / f"client-{client}" / "state" / name for client in range(3)}
    check_devices_control(tmp_path, config, {0: 120, 1: 72, 2: 60}, run=run, states=states)
    assert read_description(states[2] / "model").client == 2


def onboarded(site: Path, base: Path) -> dict:
    """Onboard client 2 from what the server has by now, and compare it with a run of so many rounds."""
    arguments = ["onboard", str(site), "--data", str(base / "2.npz"), "--no-finetune", "--out", str(base / "mine")]
    assert main(arguments) == 0
    told = read_json(base / "mine" / "onboard.json")
    assert not told["run_is_over"]
    assert 1 <= told["round"] < CONFIG.rounds
    serve_devices(CONFIG.model_copy(update={"rounds": told["round"]}), base, run=base / "short")
    short = read_weights(base / "short" / "model" / "model.safetensors")
    mine = read_weights(base / "mine" / "model.safetensors")
    assert mine.keys() == short.keys()
    assert all(torch.equal(mine[name], tensor) for name, tensor in short.items())
    return told
