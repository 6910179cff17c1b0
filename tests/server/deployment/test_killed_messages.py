"""What Flower starts for a message, killed before the SuperNode has a reply: the SuperNode would wait for ever."""

import contextlib
from pathlib import Path

import pytest

from spatl.console.main import main
from spatl.deployment.processes import free_port
from spatl.runs.records import read_lines
from tests.support.deployments import started
from tests.support.federations import tiny_config
from tests.support.processes import until

pytestmark = pytest.mark.slow

_SECONDS = 240.0


def test_clients_come_back_whose_message_or_executor_was_killed_before_the_message_was_read(tmp_path):
    config = tiny_config(method="spatl", rounds=2, partition={"num_clients": 2})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    federation, address = tmp_path / "federation", f"127.0.0.1:{free_port()}"
    assert main(["deploy", "init", str(federation), str(tmp_path / "config.yaml"), "--address", address]) == 0
    logs = [tmp_path / f"client-{client}.log" for client in range(2)]
    with contextlib.ExitStack() as stack:
        said = tmp_path / "server.log"
        server = stack.enter_context(started("deploy", "server", str(federation / "server"), log=said))
        for client, log in enumerate(logs):
            stack.enter_context(started("deploy", "client", str(federation / f"client-{client}"), log=log))
        for client, victim in enumerate(("flwr-clientapp", "flower-superexec")):
            own = federation / f"client-{client}" / "flower"
            until((own / "running" / "flower-superexec").exists)
            _sabotage(own / "bin" / "flwr-clientapp", own / "running" / victim)
        assert server.wait(_SECONDS) == 0, said.read_text()
    run = federation / "server" / "run"
    said = (run / "log.jsonl").read_text()
    assert said.count("it will be asked again") == 2
    assert [row["participants"] for row in read_lines(run / "history.jsonl")] == [2, 2]
    questions = [
        (row["client"], row["direction"]) for row in read_lines(run / "ledger.jsonl") if row["phase"] == "query"
    ]
    for client in range(2):
        assert (questions.count((client, "downlink")), questions.count((client, "uplink"))) == (2, 1)
    assert [log.read_text().count("waits for a process that is gone") for log in logs] == [1, 1]


def _sabotage(path: Path, mark: Path) -> None:
    """Have a program kill itself, or another with a mark, when it is started for the first time."""
    original = path.with_name("original")
    path.rename(original)
    first_lines = "".join(original.read_text().splitlines(keepends=True)[:-1])
    path.write_text(f"{first_lines}mv '{original}' '{path}'\nkill -9 $(cat '{mark}')\nkill -9 $$\n")
    path.chmod(original.stat().st_mode)
