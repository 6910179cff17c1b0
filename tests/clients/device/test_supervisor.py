"""Programs that are started again when they end."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clients.device import supervisor
from spatl.deployment.processes import command_of, descendants
from tests.support.processes import gone, until

_SECONDS = 30.0


@contextmanager
def keeping(marks: Path, *arguments: str, patience: float = 120.0) -> Iterator[subprocess.Popen[str]]:
    """A supervisor, which is not waited for where a test fails: it would never end."""
    pulse = marks.parent / "pulse"
    pulse.mkdir(exist_ok=True)
    command = [sys.executable, "-S", "-E", supervisor.__file__, str(marks), str(pulse), "3", *arguments]
    settings = {**os.environ, supervisor.PATIENCE_VARIABLE: str(patience)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=settings) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


@pytest.mark.slow
def test_each_program_is_started_again_however_it_ended_and_it_is_said(tmp_path):
    starts = tmp_path / "starts"
    (marks := tmp_path / "marks").mkdir()
    with keeping(marks, "sh", "-c", f"echo >> {starts}; exit 3", "--", "sleep", "600") as process:
        until(lambda: any("sleep" in command_of(number) for number in descendants(process.pid)))
        (sleeper,) = (number for number in descendants(process.pid) if "sleep" in command_of(number))
        os.kill(sleeper, signal.SIGKILL)
        until(lambda: any("sleep" in command_of(n) and not gone(n) for n in descendants(process.pid) if n != sleeper))
        until(lambda: starts.exists() and len(starts.read_text()) >= 2)
        process.terminate()
        said = process.communicate()[1]
    assert re.search(r"sh ended with status 3; it starts again in [12]\.\d s", said)
    assert "sleep ended by signal 9; it starts again in " in said


def test_told_to_stop_it_stops_what_it_keeps(tmp_path):
    for number in (signal.SIGTERM, signal.SIGINT):
        with keeping(tmp_path, "sleep", "600", "--", "sleep", "600") as process:
            until(lambda process=process: len(descendants(process.pid)) == 2)
            below = descendants(process.pid)
            process.send_signal(number)
            assert process.wait(_SECONDS) == 0
        assert all(map(gone, below))


def test_told_to_stop_while_it_starts_a_program_it_leaves_none_behind(tmp_path):
    """The signal comes when the second program runs, and nobody has been told so yet."""
    code = (
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(Path(supervisor.__file__).parents[2])!r})\n"
        "from clients.device import supervisor\n"
        "started, truly = [], supervisor.subprocess.Popen\n"
        "def start(*arguments, **options):\n"
        "    started.append(truly(*arguments, **{**options, 'preexec_fn': None}))\n"  # none dies with its parent
        "    print(started[-1].pid, flush=True)\n"
        "    if len(started) == 2:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return started[-1]\n"
        "supervisor.subprocess.Popen = start\n"
        f"sys.argv[1:] = [{str(tmp_path)!r}, {str(tmp_path)!r}, '3', 'sleep', '600', '--', 'sleep', '600']\n"
        "supervisor.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    numbers = [int(line) for line in done.stdout.split()]
    assert len(numbers) == 2
    left = [number for number in numbers if not gone(number)]
    for number in left:
        os.kill(number, signal.SIGKILL)
    assert left == []


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
    assert said.count("sh waits for a process that is gone\nsh ended by signal 15; it starts again in ") == 2
    assert "sleep" not in said
    assert gone(other)


BEATING = "while :; do touch {pulse}/asking {pulse}/heartbeat; sleep 0.05; done"


def test_one_that_lives_but_asks_for_nothing_any_more_is_started_again(tmp_path):
    (marks := tmp_path / "marks").mkdir()
    starts, pulse = tmp_path / "starts", tmp_path / "pulse"
    silent = f"echo >> {starts}; touch {pulse}/asking; while :; do touch {pulse}/heartbeat; sleep 0.05; done"
    with keeping(marks, "sh", "-c", silent, "--", "sleep", "600", patience=1.0) as process:
        until(lambda: starts.exists() and len(starts.read_text()) == 2)
        process.terminate()
        said = process.communicate()[1]
    assert "sh has not called the server for 1 s or more\n" in said
    assert "sleep" not in said


class Program:
    """Stands for a process."""

    def __init__(self, *arguments, **named):
        self.status = None

    def poll(self):
        return self.status

    def terminate(self):
        self.status = -signal.SIGTERM

    def wait(self, timeout=None):
        return self.status

    def kill(self):
        pass


@pytest.fixture
def pretended_time(monkeypatch):
    """The time, in a list, and programs that are none."""
    now = [0.0]
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(supervisor.subprocess, "Popen", Program)
    return now


def is_stopped(supervised, pretended_time, *, seconds, each_time=lambda: None):
    """Whether a program that is looked at for so long was stopped."""
    for _ in range(int(seconds / supervisor.POLL_SECONDS)):
        pretended_time[0] += supervisor.POLL_SECONDS
        each_time()
        supervised.check()
        if supervised.process.poll() is not None:
            return True
    return False


def test_one_that_works_on_a_message_need_not_ask_but_its_heartbeat_must_go_on(tmp_path, pretended_time):
    for name in ("marks", "pulse"):
        (tmp_path / name).mkdir()
    mark, heartbeat = tmp_path / "marks" / supervisor.MESSAGE, tmp_path / "pulse" / "heartbeat"
    beats = iter(range(1, 10**6))

    def beat():
        os.utime(heartbeat, (0, next(beats)))

    for works, beating, stopped in ((True, True, False), (True, False, True), (False, True, True)):
        supervised = supervisor.Supervised(["program"], mark.parent, heartbeat.parent, patience=40.0)
        if works:
            mark.write_text(f"{os.getpid()}\n")
        each_time = beat if beating else lambda: None
        assert not is_stopped(supervised, pretended_time, seconds=30.0, each_time=each_time)
        assert is_stopped(supervised, pretended_time, seconds=50.0, each_time=each_time) is stopped


def test_files_that_are_not_there_tell_nothing(tmp_path, pretended_time):
    (pulse := tmp_path / "pulse").mkdir()
    supervised = supervisor.Supervised(["program"], None, pulse, patience=40.0)
    for name in supervisor.PULSES:
        (pulse / name).unlink()
    pulse.rmdir()
    assert not is_stopped(supervised, pretended_time, seconds=400.0)


def test_time_in_which_the_supervisor_itself_was_stopped_is_no_silence(tmp_path):
    (marks := tmp_path / "marks").mkdir()
    beating = BEATING.format(pulse=tmp_path / "pulse")
    with keeping(marks, "sh", "-c", beating, patience=2.0) as process:
        until((tmp_path / "pulse" / "heartbeat").exists)
        program = descendants(process.pid)[0]  # the nearest: below it a `touch` comes and goes
        for number in (process.pid, program):
            os.kill(number, signal.SIGSTOP)
        time.sleep(3.0)
        for number in (process.pid, program):
            os.kill(number, signal.SIGCONT)
        time.sleep(1.0)
        assert not gone(program)
        process.terminate()
        assert process.communicate()[1] == ""


def test_waits_grow_differ_between_devices_and_are_the_first_again_once_it_has_lived(pretended_time, capsys):
    def waits(seed, lived):
        program, found = supervisor.Supervised(["program"], seed=seed), []
        for seconds in lived:
            program.process.status = 1
            pretended_time[0] += seconds
            program.check()
            found.append(program.due - pretended_time[0])
            pretended_time[0] = program.due
            program.check()
        return found

    ones = waits("1", [0.0] * 8)
    for number, wait in enumerate(ones):
        longest = min(supervisor.FIRST_WAIT_SECONDS * 2**number, supervisor.MOST_WAIT_SECONDS)
        assert longest / 2 <= wait <= longest
    assert waits("1", [0.0] * 8) == pytest.approx(ones)
    assert waits("2", [0.0] * 8) != pytest.approx(ones)
    assert waits("1", [0.0] * 5 + [supervisor.GOOD_SECONDS + 1])[-1] <= supervisor.FIRST_WAIT_SECONDS
    assert "program ended with status 1; it starts again in " in capsys.readouterr().err
