"""Looks at processes that a test started."""

import time
from collections.abc import Callable
from pathlib import Path

_SECONDS = 60.0


def until(happens: Callable[[], object], *, seconds: float = _SECONDS) -> None:
    """Wait for something, a minute at most where nothing else is said."""
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def gone(number: int) -> bool:
    """Whether a process has ended, be it that nobody has asked how."""
    stat = Path(f"/proc/{number}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"
