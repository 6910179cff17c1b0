"""Programs that are started again when they end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from clients import keep
from spatl.processes import descendants

_SECONDS = 30.0


def keeping(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-S", "-E", keep.__file__, *arguments], stderr=subprocess.PIPE, text=True)


def until(happens: Callable[[], object]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def gone(number: int) -> bool:
    """Whether a process has ended, be it that nobody has asked how."""
    stat = Path(f"/proc/{number}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_each_program_is_started_again_however_it_ended_and_it_is_said(tmp_path):
    marks = tmp_path / "marks"
    with keeping("sh", "-c", f"echo >> {marks}; exit 3", "--", "sleep", "600") as process:
        until(lambda: descendants(process.pid))
        (sleeper,) = (number for number in descendants(process.pid) if b"sleep" in command(number))
        os.kill(sleeper, signal.SIGKILL)
        until(lambda: any(b"sleep" in command(n) and not gone(n) for n in descendants(process.pid) if n != sleeper))
        until(lambda: len(marks.read_text()) >= 2)
        process.terminate()
        said = process.communicate()[1]
    assert "sh ended with status 3; it starts again in 5 s" in said
    assert "sleep ended by signal 9; it starts again in 5 s" in said


def command(number: int) -> bytes:
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return b""


def test_told_to_stop_it_stops_what_it_keeps():
    for number in (signal.SIGTERM, signal.SIGINT):
        with keeping("sleep", "600", "--", "sleep", "600") as process:
            until(lambda process=process: len(descendants(process.pid)) == 2)
            below = descendants(process.pid)
            process.send_signal(number)
            assert process.wait(_SECONDS) == 0
        assert all(map(gone, below))


def test_killed_it_takes_along_what_it_keeps():
    with keeping("sleep", "600") as process:
        until(lambda: any(b"sleep" in command(number) for number in descendants(process.pid)))
        (sleeper,) = descendants(process.pid)
        process.kill()
    until(lambda: gone(sleeper))
