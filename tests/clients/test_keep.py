"""Programs that are started again when they end."""

import os
import signal
import subprocess
import sys

from clients import keep
from spatl.processes import descendants
from tests.processes import command_of, gone, until

_SECONDS = 30.0


def keeping(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-S", "-E", keep.__file__, *arguments], stderr=subprocess.PIPE, text=True)


def test_each_program_is_started_again_however_it_ended_and_it_is_said(tmp_path):
    marks = tmp_path / "marks"
    with keeping("sh", "-c", f"echo >> {marks}; exit 3", "--", "sleep", "600") as process:
        until(lambda: descendants(process.pid))
        (sleeper,) = (number for number in descendants(process.pid) if "sleep" in command_of(number))
        os.kill(sleeper, signal.SIGKILL)
        until(lambda: any("sleep" in command_of(n) and not gone(n) for n in descendants(process.pid) if n != sleeper))
        until(lambda: len(marks.read_text()) >= 2)
        process.terminate()
        said = process.communicate()[1]
    assert "sh ended with status 3; it starts again in 5 s" in said
    assert "sleep ended by signal 9; it starts again in 5 s" in said


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
        until(lambda: any("sleep" in command_of(number) for number in descendants(process.pid)))
        (sleeper,) = descendants(process.pid)
        process.kill()
    until(lambda: gone(sleeper))
