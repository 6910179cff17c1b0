"""Real processes of a simulation on Ray that are killed, and disks that refuse: workers, the run itself, Ray."""

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.engines import run_inline
from spatl.console.main import main
from spatl.deployment.processes import command_of, descendants, is_alive
from spatl.runner import resume
from spatl.runs.files import ERROR, HISTORY
from spatl.runs.records import read_lines
from tests.support import processes
from tests.support.federations import history_without_seconds, tiny_config

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="directories of Linux in which nobody writes")

CONFIG = {"rounds": 8, "partition": {"num_clients": 4}, "training": {"local_steps": 150}, "method": "spatl"}
READ_ONLY = Path("/sys")
"""A directory in which nobody makes a file, not even root."""
ACTOR = "ray::ClientAppActor.run"

until = functools.partial(processes.until, seconds=240.0)  # Ray takes its time where others work too


def below(root: int, name: str) -> list[int]:
    """The processes below one whose command holds a name."""
    return [number for number in descendants(root) if name in command_of(number)]


def num_rounds(out: Path) -> int:
    """How many rounds are over."""
    return len(read_lines(out / HISTORY)) if (out / HISTORY).exists() else 0


def kill_once(root: int, name: str) -> None:
    """Kill a process of that name, once workers work."""
    until(lambda: below(root, ACTOR) and below(root, name))
    os.kill(below(root, name)[0], signal.SIGKILL)


@contextmanager
def beside(disturb: Callable[[], object]):
    """Disturb a run in another thread; that it has been is checked."""
    done = list[bool]()
    thread = threading.Thread(target=lambda: (disturb(), done.append(True)))
    thread.start()
    yield
    thread.join()
    assert done == [True]


def killed_with_all_it_started(path: Path, out: Path) -> None:
    """Begin a run and kill its process: all below it end, and the place where Ray lay is gone."""
    command = [sys.executable, "-m", "spatl", "run", str(path), "--out", str(out)]
    with (
        path.with_name("log").open("wb") as log,
        subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=log) as process,
    ):
        until(lambda: process.poll() is not None or (below(process.pid, ACTOR) and num_rounds(out) >= 1))
        assert process.poll() is None, path.with_name("log").read_text()
        numbers = descendants(process.pid)
        (link,) = below(process.pid, "server.simulation.superlink")
        place = Path(command_of(link).split("superlink ")[1].split()[0])
        assert (place / "ray").exists()
        process.kill()
    assert len(numbers) >= 9
    until(lambda: not any(map(is_alive, numbers)))
    until(lambda: not place.exists())


@pytest.mark.slow
def test_whatever_ends_a_run_on_ray_it_goes_on_to_the_end_of_one_that_nobody_disturbed(
    tmp_path, capsys, monkeypatch, caplog
):
    """Killed with all it started; ended by a disk and by Ray in one line each; not ended by a worker that is killed."""
    run_inline(tiny_config(**CONFIG), tmp_path / "whole")
    path, out = tmp_path / "config.yaml", tmp_path / "out"
    path.write_text(tiny_config(**CONFIG, engine="ray").to_yaml())
    killed_with_all_it_started(path, out)

    own, over = out / "clients", num_rounds(out)

    def refuse() -> None:
        until(lambda: num_rounds(out) > over)
        own.rename(own.with_name("kept"))
        own.symlink_to(READ_ONLY)

    with beside(refuse):
        assert main(["run", "--resume", str(out)]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [each for each in error.splitlines() if each.startswith("spatl: ")]
    assert re.search(rf"{own}/\d: no permission: change the .*; then go on with the run in {out} \(--resume\)", line)
    own.unlink()
    shutil.move(own.with_name("kept"), own)

    with beside(lambda: kill_once(os.getpid(), "raylet/raylet")):
        assert main(["run", "--resume", str(out)]) == 2
    # Flower's process may have ended before it could say more.
    told = rf"spatl: (Ray's raylet is gone|Flower's simulation ended without a result); go on with the run in {out} "
    assert re.match(told, capsys.readouterr().err.splitlines()[-1])
    assert not below(os.getpid(), "ray")
    assert all(row["missing"] == 0 for row in read_lines(out / HISTORY))
    assert num_rounds(out) < CONFIG["rounds"]

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with beside(lambda: kill_once(os.getpid(), ACTOR)):
        resume(out, pictures=False)
    assert "RAY_ADDRESS=127.0.0.1:1 is not used: a run starts a Ray of its own" in caplog.text
    assert history_without_seconds(out) == history_without_seconds(tmp_path / "whole")
    assert not (out / ERROR).exists()
