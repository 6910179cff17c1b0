"""Real processes of a simulation on Ray that are killed: workers, the run itself, Ray."""

import functools
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from spatl.console.main import main
from spatl.deployment.processes import command_of, descendants, is_alive
from spatl.runner import run
from spatl.runs.files import ERROR, HISTORY
from spatl.runs.records import read_lines
from tests.support import processes
from tests.support.federations import history_without_seconds, tiny_config

CONFIG = {"rounds": 4, "partition": {"num_clients": 4}, "training": {"local_steps": 300}, "method": "spatl"}

until = functools.partial(processes.until, seconds=240.0)  # Ray takes its time where others work too


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    """The same federation in one process, which nobody disturbs."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    run(tiny_config(**CONFIG), directory, pictures=False)
    return history_without_seconds(directory)


def below(root: int, name: str) -> list[int]:
    """The processes below one whose command holds a name."""
    return [number for number in descendants(root) if name in command_of(number)]


def kill_once(root: int, name: str, history: Path, *, rounds: int) -> list[int]:
    """Wait until so many rounds are over, and a process of that name is there; kill it."""
    until(lambda: history.exists() and len(history.read_bytes().splitlines()) >= rounds)
    until(lambda: below(root, "ray::ClientAppActor.run") and below(root, name))
    (number, *_) = below(root, name)
    os.kill(number, signal.SIGKILL)
    return [number]


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_nothing_and_another_ray_is_not_looked_for(
    never_killed, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    out, killed = tmp_path / "out", list[int]()
    killer = threading.Thread(
        target=lambda: killed.extend(kill_once(os.getpid(), "ray::ClientAppActor.run", out / HISTORY, rounds=1))
    )
    killer.start()
    run(tiny_config(**CONFIG, engine="ray"), out, pictures=False)
    killer.join()
    assert len(killed) == 1
    assert history_without_seconds(out) == never_killed
    assert "RAY_ADDRESS=127.0.0.1:1 is not used: a run starts a Ray of its own" in caplog.text


@pytest.mark.slow
def test_all_processes_end_with_the_run_or_with_ray_and_it_goes_on_as_undisturbed(never_killed, tmp_path, capsys):
    path, out = tmp_path / "config.yaml", tmp_path / "out"
    path.write_text(tiny_config(**CONFIG, engine="ray").to_yaml())
    command = [sys.executable, "-m", "spatl", "run", str(path), "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        until(lambda: below(process.pid, "ray::ClientAppActor.run") and len(read_lines(out / HISTORY)) >= 1)
        numbers = descendants(process.pid)
        (link,) = below(process.pid, "server.simulation.superlink")
        place = Path(command_of(link).split("superlink ")[1].split()[0])
        assert (place / "ray").exists()
        process.kill()
    assert len(numbers) >= 9
    until(lambda: not any(map(is_alive, numbers)))
    until(lambda: not place.exists())

    over = len(read_lines(out / HISTORY))
    killer = threading.Thread(target=kill_once, args=(os.getpid(), "raylet/raylet", out / HISTORY),
                              kwargs={"rounds": over})  # fmt: skip
    killer.start()
    assert main(["run", "--resume", str(out)]) == 2
    killer.join()
    # Flower's process may have ended before it could say more.
    told = rf"spatl: (Ray's raylet is gone|Flower's simulation ended without a result); go on with the run in {out} "
    assert re.match(told, capsys.readouterr().err.splitlines()[-1])
    assert not below(os.getpid(), "ray")
    assert all(row["missing"] == 0 for row in read_lines(out / HISTORY))

    assert main(["run", "--resume", str(out)]) == 0
    assert history_without_seconds(out) == never_killed
    assert not (out / ERROR).exists()
