"""CPU time of a program with all processes below it, whoever started them and however they ended."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from spatl.deployment.processes import facts_of_all
from spatl.errors import SpatlError

_PROC: Final = Path("/proc")
_LOOK_SECONDS: Final = 0.1
_Process = tuple[int, int]  # a number, and when it was started: numbers are given again


def cpu_seconds_of(command: Sequence[str], settings: Mapping[str, str] | None = None) -> float:
    """Run a program and return the CPU seconds that it and all processes below it took.

    They are looked at ten times a second: what one takes after the last look at it, a tenth of a second at most, is
    missed. One whose parent has ended still counts.

    Args:
        command: The program and its arguments.
        settings: Environment variables beside those of this process.

    Raises:
        SpatlError: There is no /proc, as on systems other than Linux, or the program failed.
    """
    if not (_PROC / "self" / "stat").exists():
        raise SpatlError("the CPU time of several processes is read from /proc, which this system has not: use Linux")
    seen = dict[_Process, float]()
    with subprocess.Popen(
        list(command), env={**os.environ, **(settings or {})}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as program:
        told = list[bytes]()
        descriptor = program.stdout
        assert descriptor is not None
        os.set_blocking(descriptor.fileno(), False)
        known = set[_Process]()
        while program.poll() is None:
            told += [descriptor.read() or b""]
            _look(program.pid, known, seen)
            time.sleep(_LOOK_SECONDS)
        told += [descriptor.read() or b""]
        if program.returncode:
            last = b"".join(told).decode(errors="replace").strip().splitlines()[-1:]
            raise SpatlError(f"{' '.join(command[:3])} ended with status {program.returncode}: {''.join(last)}")
    return sum(seen.values())


def _look(root: int, known: set[_Process], seen: dict[_Process, float]) -> None:
    """Note the CPU seconds so far of a process, of all below it, and of those that once were."""
    facts = facts_of_all()
    below = {root}
    while more := {number for number, each in facts.items() if each.parent in below and number not in below}:
        below |= more
    known |= {(number, facts[number].started) for number in below if number in facts}
    for number, each in facts.items():
        if (number, each.started) in known:
            seen[number, each.started] = each.cpu_seconds
