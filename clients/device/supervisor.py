"""Supervisor of a device's programs: `python -S -E clients/device/supervisor.py MARKS PULSE SEED COMMAND ... [-- ...]`.

Each is started again when it has ended, as a SuperNode does when its server was started anew. The first one is also
started again when a process that it waits for is gone: each file in MARKS holds the id of one; and when it lives but
does nothing any more: it touches the files in PULSE. A program of the standard library alone, for it stays in memory
all the time.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

MARK_VARIABLE = "SPATL_MARK"
"""Environment variable with the path of a process's mark, which it deletes when nothing waits for it any more."""
MESSAGE = "flwr-clientapp"
"""Mark of the process that works on a message; as long as it lives, the SuperNode has nothing to ask for."""
PULSE_VARIABLE = "SPATL_PULSE"
"""Environment variable with the directory of the files that a SuperNode touches as it goes."""
PULSES = ("asking", "heartbeat")
"""Files that it touches: with each step of a call for messages, or with one; and of a heartbeat."""
SESSION_VARIABLE = "SPATL_SESSION"
"""Environment variable with the file in which a SuperNode leaves its node's id."""
PATIENCE_VARIABLE = "SPATL_PULSE_SECONDS"
"""Environment variable with how long a program may touch nothing; `PATIENCE_SECONDS` where it is not set."""
PATIENCE_SECONDS = 120.0
"""Twice what the slowest step of a call may take on a device that is slow itself, the start of the program included."""
BEAT_SECONDS = 30.0
"""More than the time from one heartbeat of Flower's to the next."""
FIRST_WAIT_SECONDS = 2.0
"""Time from the end of a program to its next start, at first; twice that the next time."""
MOST_WAIT_SECONDS = 30.0
"""The longest such time."""
GOOD_SECONDS = 60.0
"""A program that has lived so long has started well: the times are those of the first again."""
POLL_SECONDS = 0.25
"""Time between two checks of the programs."""
_STOP_SECONDS = 10.0
_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


class Supervised:
    """Program that is started again when it ends.

    Args:
        command: What to start.
        marks: A directory of files, each with the id of a process without which this program would wait for ever.
        pulse: A directory of files, each of which this program touches as long as it does what it should.
        patience: How long it may leave one of them alone, in seconds in which this process runs itself.
        seed: Of the times to wait, which differ from one device to the next.

    Attributes:
        process: The program.
        due: When it starts again, by `time.monotonic`; None while it runs, or nobody has seen yet that it has ended.
    """

    def __init__(
        self, command: Sequence[str], marks: Path | None = None, pulse: Path | None = None, *,
        patience: float = PATIENCE_SECONDS, seed: str = "",
    ) -> None:  # fmt: skip
        self._command = command
        self._marks = marks
        self._pulse = pulse
        self._patience = patience
        self._seed = seed
        self._failures = 0
        self.due: float | None = None
        self._start()

    def _start(self) -> None:
        for mark in self._marked():
            mark.unlink(missing_ok=True)
        self._touched: dict[str, float | None] = {}
        self._ages = dict.fromkeys(PULSES, 0.0)
        if self._pulse is not None:
            for name in PULSES:
                with contextlib.suppress(OSError):
                    (self._pulse / name).touch()
                self._touched[name] = _touched(self._pulse / name)
        self._started = self._checked = time.monotonic()
        self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, preexec_fn=_kill_with_parent())

    def _marked(self) -> list[Path]:
        return [] if self._marks is None else sorted(self._marks.glob("*"))  # nothing if it was deleted

    def check(self) -> None:
        """Start the program again if it ended a while ago; stop it if it waits in vain, or does nothing any more."""
        status = self.process.poll()
        if status is None:
            if any(map(_has_ended, self._marked())):
                self._say("waits for a process that is gone")
                _stop([self.process])
            elif self._pulse is not None and self._is_silent(self._pulse):
                self._say(f"has not called the server for {self._patience:g} s or more")
                _stop([self.process], seconds=1.0)
        elif self.due is None:
            if time.monotonic() - self._started > GOOD_SECONDS:
                self._failures = 0
            longest = min(FIRST_WAIT_SECONDS * 2**self._failures, MOST_WAIT_SECONDS)
            share = zlib.crc32(f"{self._seed} {self._failures}".encode()) / (1 << 32)  # of [0, 1)
            wait = longest * (1 + share) / 2
            self._failures = min(self._failures + 1, 30)
            how = f"with status {status}" if status >= 0 else f"by signal {-status}"
            self._say(f"ended {how}; it starts again in {wait:.1f} s")
            self.due = time.monotonic() + wait
        elif time.monotonic() >= self.due:
            self.due = None
            self._start()

    def _is_silent(self, pulse: Path) -> bool:
        """Return whether the program has left a file alone for too long, and works on nothing.

        What counts is that a file changes, not its date, and time in which this process runs: clocks are set, machines
        sleep. A file that is not there tells nothing: the disk may be full.
        """
        now = time.monotonic()
        passed, self._checked = min(now - self._checked, 4 * POLL_SECONDS), now
        works = self._marks is not None and (self._marks / MESSAGE).exists()
        for name in PULSES:
            touched = _touched(pulse / name)
            if touched is None or touched != self._touched[name] or (works and name == PULSES[0]):
                self._touched[name], self._ages[name] = touched, 0.0
            else:
                self._ages[name] += passed
        asking, heartbeat = (self._ages[name] for name in PULSES)
        return asking > self._patience or heartbeat > self._patience + BEAT_SECONDS

    def _say(self, what: str) -> None:
        print(f"{self._name} {what}", file=sys.stderr, flush=True)

    @property
    def _name(self) -> str:
        """Program, or the module that Python runs."""
        return self._command[self._command.index("-m") + 1] if "-m" in self._command else self._command[0]


def _touched(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _has_ended(mark: Path) -> bool:
    """Return whether the process of a mark has ended; one whose status nobody has asked for has."""
    try:
        number = int(mark.read_text())
        os.kill(number, 0)
    except (FileNotFoundError, ValueError):
        return False  # just removed, or not yet written
    except ProcessLookupError:
        return True
    with contextlib.suppress(OSError):
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


def _stop(processes: Iterable[subprocess.Popen[bytes]], *, seconds: float = _STOP_SECONDS) -> None:
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + seconds
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        process.kill()
        process.wait()


def _kill_with_parent() -> Callable[[], object] | None:
    """Return what a new process calls so that it is killed when this one ends; None where there is no such call."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def _commands(arguments: Sequence[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for argument in (*arguments, "--"):
        if argument != "--":
            command.append(argument)
        elif command:
            yield command
            command = []


def main() -> None:
    """Run the programs until a signal comes, and stop them then.

    A signal is taken note of, and ends nothing by itself: in the middle of a start, the program that is being started
    would be left behind.
    """
    came: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: came.append(number))
    programs: list[Supervised] = []
    try:
        marks, pulse, seed = sys.argv[1:4]
        first, *others = _commands(sys.argv[4:])
        patience = float(os.environ.get(PATIENCE_VARIABLE, PATIENCE_SECONDS))
        programs.append(Supervised(first, Path(marks), Path(pulse), patience=patience, seed=seed))
        programs += (Supervised(other, seed=seed) for other in others)
        while not came:
            time.sleep(POLL_SECONDS)
            for program in programs:
                if not came:
                    program.check()
    finally:
        _stop(program.process for program in programs)


if __name__ == "__main__":
    main()
