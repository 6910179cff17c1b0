"""What Flower starts for a message, killed before the SuperNode has a reply: the SuperNode would wait for ever."""

import contextlib
import os
from pathlib import Path

import pytest

from spatl.cli import main
from spatl.history import read_lines
from spatl.processes import free_port
from tests.deployments import started
from tests.federations import tiny_config
from tests.processes import until

pytestmark = pytest.mark.slow

_SECONDS = 240.0


@pytest.mark.parametrize("program", ["flwr-clientapp", "flower-superexec"])
def test_a_client_comes_back_whose_message_was_killed_before_it_was_read(tmp_path, program):
    config = tiny_config(method="spatl", rounds=3, partition={"num_clients": 2}, server={"patience": 8.0})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    federation, address = tmp_path / "federation", f"127.0.0.1:{free_port()}"
    assert main(["deploy", "init", str(federation), str(tmp_path / "config.yaml"), "--address", address]) == 0
    with contextlib.ExitStack() as stack:
        logs = [tmp_path / f"client-{client}.log" for client in range(2)]
        for client, log in enumerate(logs):
            stack.enter_context(started("deploy", "client", str(federation / f"client-{client}"), log=log))
        own = federation / "client-0" / "flower"
        until((own / "running" / "flower-superexec").exists)
        _sabotage(own / "bin" / "flwr-clientapp", (own / "running" / program))
        server = stack.enter_context(
            started("deploy", "server", str(federation / "server"), log=tmp_path / "server.log")
        )
        assert server.wait(_SECONDS) == 0, (tmp_path / "server.log").read_text()
    rounds = read_lines(federation / "server" / "run" / "history.jsonl")
    assert [row["participants"] for row in rounds] == [2, 2, 2]  # it was the registration, which is asked for again
    said = [log.read_text().count("waits for a process that is gone") for log in logs]
    assert said == [1, 0]


def _sabotage(path: Path, mark: Path) -> None:
    """Have a program kill itself, or another with a mark, when it is started for the first time."""
    original = path.with_name("original")
    path.rename(original)
    first_lines = "".join(original.read_text().splitlines(keepends=True)[:-1])
    path.write_text(f"{first_lines}mv '{original}' '{path}'\nkill -9 $(cat '{mark}')\nkill -9 $$\n")
    path.chmod(os.stat(original).st_mode)
