"""A deployment on loopback that is never stopped: a device comes while it runs, another is retired, by two commands."""

import contextlib
from pathlib import Path

import pytest

from clients.admission import check_server, read_private_key
from server.registration import RETIRED
from spatl.config.loading import load_config
from spatl.console.main import main
from spatl.deployment.processes import free_port
from spatl.deployment.sites import CA_CERTIFICATE, CLIENT_KEY, Address, run_name
from spatl.json_files import read_json
from spatl.runs.checkpoint import load_checkpoint
from spatl.runs.records import read_lines
from spatl.runs.status import read_status
from tests.support.deployments import await_that, started
from tests.support.own_data import check_devices_control, own_config, write_data

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


def test_a_device_comes_and_another_goes_while_the_server_runs_and_c_is_the_sum_over_the_others(tmp_path: Path) -> None:
    """Claims: the newcomer is in each round once it is there, the retired in none, its key refused, and c is right."""
    for client, number in enumerate((200, 120, 100)):
        write_data(tmp_path / f"{client}.npz", number, range(4), seed=client)
    (tmp_path / "config.yaml").write_text(CONFIG.to_yaml())
    federation, address = tmp_path / "federation", f"127.0.0.1:{free_port()}"
    assert main(["deploy", "init", str(federation), str(tmp_path / "config.yaml"), "--address", address]) == 0
    site, run, log = federation / "server", federation / "server" / "run", tmp_path / "server.log"
    with contextlib.ExitStack() as stack:

        def start(client: int) -> None:
            command = ("deploy", "client", str(federation / f"client-{client}"))
            own = tmp_path / f"client-{client}.log"
            stack.enter_context(started(*command, "--data-dir", str(tmp_path / f"{client}.npz"), log=own))

        def rounds_of(clients: set[int], number: int) -> None:
            """Wait for so many rounds of exactly these clients, one after the other and the last ones."""
            last = max(participants(run), default=0)

            def are_over() -> bool:
                found = participants(run)
                latest = sorted(found)[-number:]
                return latest[0] > last and all(found[each] == clients for each in latest) if latest else False

            await_that(are_over, server, seconds=SECONDS, told=log.read_text)

        server = stack.enter_context(started("deploy", "server", str(site), log=log))
        start(0)
        start(1)
        rounds_of({0, 1}, 2)
        assert main(["deploy", "add-client", str(federation)]) == 0
        start(2)
        rounds_of({0, 1, 2}, 2)
        assert main(["deploy", "retire", str(federation), "0"]) == 0
        rounds_of({1, 2}, 3)
        own = federation / "client-0"
        refused = check_server(Address.parse(address), own / CA_CERTIFICATE, read_private_key(own / CLIENT_KEY))
        assert refused is not None
        assert refused.is_of_key
        assert server.poll() is None
        assert read_status(site).state == "running"
        server.terminate()  # before its devices are, or it goes on with those that are left
        server.wait(SECONDS)
    told = log.read_text()
    assert "clients 2 were added" in told
    assert "clients 0 were retired; their keys are refused" in told
    assert "starting again" not in told
    status = read_status(site)
    ((joined, who),), ((left, gone),) = status.joined.items(), status.retired.items()
    assert (who, gone) == ((2,), (0,))
    found = participants(run)
    assert all(found[each] == {0, 1} for each in found if each < joined)
    assert all(found[each] == {0, 1, 2} for each in range(joined, left - 1))  # the last may have lost its answer
    assert all(found[each] == {1, 2} for each in found if each >= left)
    assert status.clients[0].absent == RETIRED
    history = [row["round"] for row in read_lines(run / "history.jsonl")]
    assert history == list(range(1, len(history) + 1))  # each once
    assert read_json(run / "registration.json")["num_examples"] == {"1": 72, "2": 60}
    checkpoint, name = load_checkpoint(run), run_name(run)
    assert checkpoint is not None
    assert name is not None
    config = load_config(run / "config.yaml").model_copy(update={"rounds": checkpoint.server_round})
    states = {client: federation / f"client-{client}" / "state" / name for client in (1, 2)}
    check_devices_control(tmp_path, config, {1: 72, 2: 60}, run=run, states=states, before=checkpoint.server_round + 1)
