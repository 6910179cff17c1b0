"""A deployment on loopback whose devices change: one comes while its server is stopped, another while it runs.

A third is retired while it runs. The first onboards from what the server had by then, and waits for it.
"""

import contextlib
import subprocess
from pathlib import Path

import pytest
import torch

from clients.admission import check_server, read_private_key
from server.registration import RETIRED
from spatl.config.loading import load_config
from spatl.console.main import main
from spatl.deployment.processes import free_port, stop
from spatl.deployment.sites import CA_CERTIFICATE, CLIENT_KEY, Address, run_name
from spatl.json_files import read_json
from spatl.models.weights import read_weights
from spatl.runs.checkpoint import load_checkpoint
from spatl.runs.records import read_lines
from spatl.runs.status import read_status
from tests.support.deployments import await_text, await_that, started
from tests.support.own_data import check_devices_control, own_config, serve_devices, write_data

pytestmark = pytest.mark.slow

SECONDS = 300.0
ROUNDS = 400
CONFIG = own_config(
    method="spatl", rounds=ROUNDS, selection={"selector": "update"}, partition={"name": "own", "num_clients": 2},
    server={"connect_timeout_seconds": 60.0, "give_up_seconds": 120.0}, training={"local_steps": 20},
)  # fmt: skip


def participants(run: Path) -> dict[int, set[int]]:
    """Who took part in each round that is over."""
    found: dict[int, set[int]] = {}
    for row in read_lines(run / "clients.jsonl") if (run / "clients.jsonl").exists() else []:
        found.setdefault(row["round"], set()).update([row["client"]] if row["participated"] else [])
    return found


def onboarded(site: Path, base: Path) -> int:
    """Onboard client 2 from what the server has by now, compare it with a run of so many rounds, and say how many."""
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
    return int(told["round"])


def test_devices_come_and_go_and_each_takes_part_while_it_belongs_and_c_is_the_sum_over_those(tmp_path: Path) -> None:
    """Claims: newcomers are in each round once they are there, the retired in none, its key refused, and c is right."""
    for client, number in enumerate((200, 120, 100, 80)):
        write_data(tmp_path / f"{client}.npz", number, range(4), seed=client)
    (tmp_path / "config.yaml").write_text(CONFIG.to_yaml())
    federation, address = tmp_path / "federation", f"127.0.0.1:{free_port()}"
    assert main(["deploy", "init", str(federation), str(tmp_path / "config.yaml"), "--address", address]) == 0
    site, run = federation / "server", federation / "server" / "run"
    before_log, log = tmp_path / "server.log", tmp_path / "server-again.log"
    with contextlib.ExitStack() as stack:

        def start(client: int) -> subprocess.Popen[bytes]:
            command = ("deploy", "client", str(federation / f"client-{client}"))
            own = tmp_path / f"client-{client}.log"
            return stack.enter_context(started(*command, "--data-dir", str(tmp_path / f"{client}.npz"), log=own))

        def rounds_of(clients: set[int], number: int) -> None:
            """Wait for so many rounds of exactly these clients, one after the other and the last ones."""
            last = max(participants(run), default=0)

            def are_over() -> bool:
                found = participants(run)
                latest = sorted(found)[-number:]
                return latest[0] > last and all(found[each] == clients for each in latest) if latest else False

            await_that(are_over, server, seconds=SECONDS, told=log.read_text)

        server = stack.enter_context(started("deploy", "server", str(site), log=before_log))
        await_text("0 of 2 clients are connected", before_log, server, seconds=SECONDS)
        start(0)
        start(1)
        await_that((run / "server.checkpoint").exists, server, seconds=SECONDS, told=before_log.read_text)
        stop(server)
        assert not (run / "summary.json").exists()
        assert main(["deploy", "add-client", str(federation)]) == 0
        await_text("waiting: ", tmp_path / "client-2.log", start(2), seconds=SECONDS)
        before = onboarded(site, tmp_path)
        again = ("deploy", "server", str(site), "--resume", "--set", f"rounds={ROUNDS + 1}")
        server = stack.enter_context(started(*again, log=log))
        rounds_of({0, 1, 2}, 2)
        config = load_config(run / "config.yaml")
        assert (config.rounds, config.partition.num_clients) == (ROUNDS + 1, 3)
        assert main(["deploy", "add-client", str(federation)]) == 0
        start(3)
        rounds_of({0, 1, 2, 3}, 2)
        assert main(["deploy", "retire", str(federation), "0"]) == 0
        rounds_of({1, 2, 3}, 3)
        own = federation / "client-0"
        refused = check_server(Address.parse(address), own / CA_CERTIFICATE, read_private_key(own / CLIENT_KEY))
        assert refused is not None
        assert refused.is_of_key
        assert server.poll() is None
        assert read_status(site).state == "running"
        server.terminate()  # before its devices are, or it goes on with those that are left
        server.wait(SECONDS)
    told = log.read_text()
    assert "clients 3 were added" in told
    assert "clients 0 were retired; their keys are refused" in told
    assert "starting again" not in told
    status = read_status(site)
    ((joined, who),), ((left, gone),) = status.joined.items(), status.retired.items()
    assert (who, gone) == ((3,), (0,))
    firsts = {0: 1, 1: 1, 2: before + 1, 3: joined}
    found = participants(run)
    for number, clients in found.items():
        if number < left - 1:  # the last of one that goes may have lost its answer
            assert clients == {client for client, first in firsts.items() if number >= first}
        elif number >= left:
            assert clients == {1, 2, 3}
    assert status.clients[0].absent == RETIRED
    history = read_lines(run / "history.jsonl")
    assert [row["round"] for row in history] == list(range(1, len(history) + 1))  # each once
    assert {(row["missing"], row["rejected"]) for row in history if row["round"] < left - 1} == {(0, 0)}
    sent = [(row["round"], row["phase"]) for row in read_lines(run / "ledger.jsonl") if row["client"] == 2]
    assert (before + 1, "query") in sent
    assert {number for number, phase in sent if phase == "train"} >= set(range(before + 1, len(history) + 1))
    assert read_json(run / "registration.json")["num_examples"] == {"1": 72, "2": 60, "3": 48}
    checkpoint, name = load_checkpoint(run), run_name(run)
    assert checkpoint is not None
    assert name is not None
    config = load_config(run / "config.yaml").model_copy(update={"rounds": checkpoint.server_round})
    states = {client: federation / f"client-{client}" / "state" / name for client in (1, 2, 3)}
    numbers = {1: 72, 2: 60, 3: 48}
    check_devices_control(tmp_path, config, numbers, run=run, states=states, before=checkpoint.server_round + 1)
