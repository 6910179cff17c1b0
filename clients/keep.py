"""Keeps programs running on a device: `python -S -E clients/keep.py COMMAND ... [-- COMMAND ...]`.

Each is started again when it has ended, as a SuperNode does when its server was started anew. A program of the standard
library alone, for it stays in memory all the time.
"""

import contextlib
import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

WAIT_SECONDS = 5.0
"""How long after the end of a program it is started again."""
_POLL_SECONDS = 0.25
_STOP_SECONDS = 10.0
_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


class Kept:
    """A program that is started again when it ends."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._due: float | None = None
        self._start()

    def _start(self) -> None:
        self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, preexec_fn=_dies_with_parent())

    def tend(self) -> None:
        """Start it again if it has ended and its time has come."""
        status = self.process.poll()
        if status is None:
            return
        if self._due is None:
            how = f"with status {status}" if status >= 0 else f"by signal {-status}"
            print(f"{self._command[0]} ended {how}; it starts again in {WAIT_SECONDS:g} s", file=sys.stderr, flush=True)
            self._due = time.monotonic() + WAIT_SECONDS
        elif time.monotonic() >= self._due:
            self._due = None
            self._start()


def _dies_with_parent() -> Callable[[], object] | None:
    """What a new process calls so that it is killed when this one ends; None where the system has no such thing."""
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
    """Keep them running until this is told to stop, and stop them then."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    programs: list[Kept] = []
    try:
        programs += [Kept(command) for command in _commands(sys.argv[1:])]
        while True:
            time.sleep(_POLL_SECONDS)
            for program in programs:
                program.tend()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        running = [program.process for program in programs if program.process.poll() is None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
