"""A SuperLink or ServerApp that was killed, or hangs, is started again, and the run ends as if nothing had happened."""

import contextlib
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from server.deployment.control import ANSWER_VARIABLE, LinkLost, StartedSuperLink
from server.deployment.watching import IDLE_VARIABLE
from spatl.console.main import main
from spatl.deployment.processes import command_of, descendants, free_port
from spatl.runs.records import read_lines
from tests.support.deployments import await_that, started
from tests.support.federations import tiny_config

SECONDS = 240.0
RULE = """
import time
from pathlib import Path

def rule(updates):
    if len(updates) == 2:  # those of a round, not of the rehearsal
        with Path(__file__).with_name("seen").open("a+") as file:
            file.write("x")
            file.seek(0)
            while len(file.read()) == 2:  # in the second round, once
                time.sleep(1)
                file.seek(0)
    return updates.nanmean(0)
"""
VICTIMS = (
    ("deployment.superlink", signal.SIGKILL), ("flwr-serverapp", signal.SIGKILL),
    ("deployment.superlink", signal.SIGSTOP), ("flwr-serverapp", signal.SIGSTOP),
)  # fmt: skip


@pytest.mark.slow
def test_it_is_started_again_so_often_an_hour_and_then_said(link, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(tiny_config(rounds=2, method="fedavg").to_yaml())
    assert main(["deploy", "init", str(tmp_path / "federation"), str(tmp_path / "config.yaml")]) == 0
    server = str(tmp_path / "federation" / "server")
    link.failure = LinkLost("the SuperLink was ended by signal 9")
    assert main(["deploy", "server", server, "--restarts", "2"]) == 2
    out = capsys.readouterr()
    assert out.out.count("signal 9; starting again, after the last round that was over") == 2
    assert "started again 2 times within an hour (--restarts); go on with --resume" in out.err
    link.failure = None
    assert main(["deploy", "server", server, "--resume"]) == 0


def test_what_has_ended_below_a_superlink_is_not_killed_by_a_number_that_may_be_anothers_by_then(tmp_path, monkeypatch):
    status = None
    link = StartedSuperLink(SimpleNamespace(pid=os.getpid(), poll=lambda: status), None, None, tmp_path / "flower.log")
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(sleep) as ended, subprocess.Popen(sleep) as left:
        link.look_below()
        ended.kill()
        ended.wait()
        link.look_below()
        killed, status = [], -signal.SIGKILL
        with monkeypatch.context() as patch:
            patch.setattr(os, "kill", lambda number, what: killed.append(number))
            link.kill_below()
        left.kill()
    assert left.pid in killed
    assert ended.pid not in killed


def over(history):
    """How many rounds are."""
    return len(read_lines(history)) if history.exists() else 0


@pytest.mark.slow
def test_a_superlink_or_serverapp_that_is_killed_or_hangs_costs_no_round(tmp_path, monkeypatch):
    """First a rule of the user's hangs once, while the ServerApp's process lives, heartbeats and all."""
    (tmp_path / "own_rule.py").write_text(RULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(ANSWER_VARIABLE, "6")
    config = tiny_config(
        method="spatl", rounds=16, partition={"num_clients": 2}, training={"local_steps": 20},
        server={"aggregation": "own_rule:rule"},
    )  # fmt: skip
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    federation, log = tmp_path / "federation", tmp_path / "server.log"
    address = f"127.0.0.1:{free_port()}"
    assert main(["deploy", "init", str(federation), str(tmp_path / "config.yaml"), "--address", address]) == 0
    run = federation / "server" / "run"
    history = run / "history.jsonl"
    with contextlib.ExitStack() as stack:
        command = ("deploy", "server", str(federation / "server"), "--longest-step", "200")
        variables = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()]), IDLE_VARIABLE: "20"}
        server = stack.enter_context(started(*command, log=log, variables=variables))
        for client in range(2):
            own = tmp_path / f"client-{client}.log"
            stack.enter_context(started("deploy", "client", str(federation / f"client-{client}"), log=own))

        def await_again(times: int) -> None:
            again = lambda: log.read_text().count("starting again") == times  # noqa: E731
            await_that(again, server, seconds=SECONDS, told=log.read_text)

        await_again(1)
        assert "the ServerApp has done nothing for 20 s; see " in log.read_text()
        assert "own_rule.py" in (run / "flower.log").read_text()
        for times, (part, number) in enumerate(VICTIMS, start=2):
            before = over(history)
            await_that(lambda before=before: over(history) > before + 1, server, seconds=SECONDS, told=log.read_text)
            (victim,) = (pid for pid in descendants(server.pid) if part in command_of(pid))
            os.kill(victim, number)
            await_again(times)
        assert server.wait(SECONDS) == 0, log.read_text()
    assert [row["round"] for row in read_lines(history)] == list(range(1, 17))
