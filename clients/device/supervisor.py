"""Supervisor of a device's programs: `python -S -E clients/device/supervisor.py MARKS COMMAND ... [-- COMMAND ...]`.

Each is started again when it has ended, as a SuperNode does when its server was started anew. The first one is also
started again when a process that it waits for is gone: each file in MARKS holds the id of one. A program of the
standard library alone, for it stays in memory all the time.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

MARK_VARIABLE = "SPATL_MARK"
"""Environment variable with the path of a process's mark, which it deletes when nothing waits for it any more."""
WAIT_SECONDS = 5.0
"""Time from the end of a program to its next start."""
POLL_SECONDS = 0.25
"""Time between two checks of the programs."""
_STOP_SECONDS = 10.0
_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


class Supervised:
    """Program that is started again when it ends.

    Args:
        command: What to start.
        marks: A directory of files, each with the id of a process without which this program would wait for ever.
    """

    def __init__(self, command: Sequence[str], marks: Path | None = None) -> None:
        self._command = command
        self._marks = marks
        self._due: float | None = None
        self._start()

    def _start(self) -> None:
        for mark in self._marked():
            mark.unlink(missing_ok=True)
        self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, preexec_fn=_kill_with_parent())

    def _marked(self) -> list[Path]:
        return [] if self._marks is None else sorted(self._marks.glob("*"))  # nothing if it was deleted

    def check(self) -> None:
        """Start the program again if it ended a while ago; stop it if a process that it waits for is gone."""
        status = self.process.poll()
        if status is None:
            if any(map(_has_ended, self._marked())):
                self._say("waits for a process that is gone")
                _stop([self.process])
        elif self._due is None:
            how = f"with status {status}" if status >= 0 else f"by signal {-status}"
            self._say(f"ended {how}; it starts again in {WAIT_SECONDS:g} s")
            self._due = time.monotonic() + WAIT_SECONDS
        elif time.monotonic() >= self._due:
            self._due = None
            self._start()

    def _say(self, what: str) -> None:
        print(f"{self._command[0]} {what}", file=sys.stderr, flush=True)


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


def _stop(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + _STOP_SECONDS
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
    """Run the programs until a signal comes, and stop them then."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    programs: list[Supervised] = []
    try:
        first, *others = _commands(sys.argv[2:])
        programs.append(Supervised(first, Path(sys.argv[1])))
        programs += map(Supervised, others)
        while True:
            time.sleep(POLL_SECONDS)
            for program in programs:
                program.check()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        _stop(program.process for program in programs)


if __name__ == "__main__":
    main()
