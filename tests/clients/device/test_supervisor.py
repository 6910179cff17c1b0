"""Programs that are started again when they end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from clients.device import supervisor
from spatl.deployment.processes import descendants
from tests.support.processes import command_of, gone, until

_SECONDS = 30.0


def keeping(marks: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-S", "-E", supervisor.__file__, str(marks), *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_each_program_is_started_again_however_it_ended_and_it_is_said(tmp_path):
    starts = tmp_path / "starts"
    (marks := tmp_path / "marks").mkdir()
    with keeping(marks, "sh", "-c", f"echo >> {starts}; exit 3", "--", "sleep", "600") as process:
        until(lambda: descendants(process.pid))
        (sleeper,) = (number for number in descendants(process.pid) if "sleep" in command_of(number))
        os.kill(sleeper, signal.SIGKILL)
        until(lambda: any("sleep" in command_of(n) and not gone(n) for n in descendants(process.pid) if n != sleeper))
        until(lambda: len(starts.read_text()) >= 2)
        process.terminate()
        said = process.communicate()[1]
    assert "sh ended with status 3; it starts again in 5 s" in said
    assert "sleep ended by signal 9; it starts again in 5 s" in said


def test_told_to_stop_it_stops_what_it_keeps(tmp_path):
    for number in (signal.SIGTERM, signal.SIGINT):
        with keeping(tmp_path, "sleep", "600", "--", "sleep", "600") as process:
            until(lambda process=process: len(descendants(process.pid)) == 2)
            below = descendants(process.pid)
            process.send_signal(number)
            assert process.wait(_SECONDS) == 0
        assert all(map(gone, below))


def test_killed_it_takes_along_what_it_keeps(tmp_path):
    with keeping(tmp_path, "sleep", "600") as process:
        until(lambda: any("sleep" in command_of(number) for number in descendants(process.pid)))
        (sleeper,) = descendants(process.pid)
        process.kill()
    until(lambda: gone(sleeper))


def test_the_first_is_started_again_when_a_process_that_it_waits_for_is_gone(tmp_path):
    mark, starts = tmp_path / "marks" / "a process", tmp_path / "starts"
    mark.parent.mkdir()
    waited_for, zombie = (subprocess.Popen(["sleep", "600"]) for _ in range(2))
    with keeping(mark.parent, "sh", "-c", f"echo >> {starts}; exec sleep 600", "--", "sleep", "601") as process:
        for number, victim in enumerate((waited_for, zombie), start=1):
            until(lambda number=number: starts.exists() and len(starts.read_text()) == number)
            mark.write_text("")  # a shell has made it and not yet written it
            time.sleep(2 * supervisor.POLL_SECONDS)
            mark.write_text(f"{victim.pid}\n")
            time.sleep(2 * supervisor.POLL_SECONDS)
            assert len(starts.read_text()) == number
            victim.kill()
            if victim is waited_for:
                victim.wait()
        until(lambda: len(starts.read_text()) == 3)
        assert not mark.exists()
        (other,) = (number for number in descendants(process.pid) if "sleep 601" in command_of(number))
        process.terminate()
        said = process.communicate()[1]
    zombie.wait()
    assert said.count("sh waits for a process that is gone\nsh ended by signal 15; it starts again in 5 s\n") == 2
    assert "sleep" not in said
    assert gone(other)
