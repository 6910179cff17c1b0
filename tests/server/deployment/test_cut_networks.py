"""Devices whose network is cut, or whose SuperNode is killed or hangs: each takes part again by itself."""

import contextlib
import os
import signal

import pytest

from clients.device.supervisor import PATIENCE_VARIABLE
from spatl.console.main import main
from spatl.deployment.processes import command_of, descendants, free_port
from spatl.deployment.sites import ClientSite, write_site
from spatl.runs.records import read_lines
from tests.support.deployments import await_that, started
from tests.support.federations import tiny_config
from tests.support.proxies import Proxy

pytestmark = pytest.mark.slow

SECONDS = 120.0
NUM_CLIENTS = 2
CONFIG = tiny_config(
    method="spatl", rounds=1000, partition={"num_clients": NUM_CLIENTS}, training={"local_steps": 20},
    server={"round_timeout_seconds": 20.0, "patience": 1.0},
)  # fmt: skip


def supernode_of(client) -> int:
    (number,) = (each for each in descendants(client.pid) if "-m clients.device.supernode" in command_of(each))
    return number


def test_devices_come_back_by_themselves_whatever_was_cut_or_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(PATIENCE_VARIABLE, "18")
    (tmp_path / "config.yaml").write_text(CONFIG.to_yaml())
    federation, port = tmp_path / "federation", free_port()
    arguments = [str(federation), str(tmp_path / "config.yaml"), "--address", f"127.0.0.1:{port}"]
    assert main(["deploy", "init", *arguments]) == 0
    history = federation / "server" / "run" / "history.jsonl"
    logs = {name: tmp_path / f"{name}.log" for name in ("server", "client-0", "client-1")}
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(contextlib.closing(Proxy(port)))
        own = federation / "client-0"
        (own / ClientSite.FILE).unlink()
        write_site(own, ClientSite(f"127.0.0.1:{proxy.port}", 0, NUM_CLIENTS))
        # Before there is a server, its proxy closes connections.
        cut, other = (
            stack.enter_context(started("deploy", "client", str(federation / name), log=logs[name]))
            for name in ("client-0", "client-1")
        )

        def await_said(text: str) -> None:
            """Wait until the client whose network is cut has said something in a round."""
            said = logs["client-0"]
            await_that(lambda: text in said.read_text().partition("ROUND 1]")[2], cut, seconds=SECONDS)

        await_that(lambda: "waiting: " in logs["client-0"].read_text(), cut, seconds=SECONDS)
        server = stack.enter_context(started("deploy", "server", str(federation / "server"), log=logs["server"]))

        def full_round() -> None:
            """Wait for a round of all clients that begins from now on."""
            over = len(read_lines(history)) if history.exists() else 0
            await_that(
                lambda: history.exists()
                and any(row["participants"] == NUM_CLIENTS for row in read_lines(history)[over + 1 :]),
                server, seconds=SECONDS, told=lambda: "\n".join(log.read_text()[-3000:] for log in logs.values()),
            )  # fmt: skip

        full_round()
        first = supernode_of(cut)
        proxy.turn("refused")
        await_said("closes connections at once")
        proxy.turn("fine")
        full_round()
        proxy.turn("swallowed")
        await_said("does not answer")
        proxy.turn("fine")
        full_round()
        assert supernode_of(cut) == first  # it need not have been started again
        os.kill(first, signal.SIGKILL)  # the server still counts it as connected
        full_round()
        second = supernode_of(cut)
        os.kill(second, signal.SIGSTOP)
        await_said("has not called the server for 18 s")
        full_round()
        assert supernode_of(cut) not in (first, second)
        assert main(["deploy", "client", str(own)]) == 2
        assert f"another process runs the client of {own}" in capsys.readouterr().err
        assert (cut.poll(), other.poll()) == (None, None)
    assert "ended" not in logs["client-1"].read_text()
