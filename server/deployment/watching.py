"""Watch over the process of a ServerApp: Flower says only after a minute that it has heard nothing of it.

One that was killed is gone at once, and one that was stopped stands still, for whoever can look (Linux). What hangs in
another way while Flower's heartbeats go on nobody sees but who looks at the rounds.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable

from spatl.deployment.processes import command_of, state_of

GONE_SECONDS = 3.0
"""How long it may be gone, while what it left is on its way to the disk and to Flower."""
STILL_SECONDS = 15.0
"""How long it may stand still."""
_PROGRAM = "flwr-serverapp"
_STOPPED = "T"


class AppWatch:
    """Watch over the ServerApp among the processes below a SuperLink.

    Args:
        now: The time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seen = False
        self._lost_since: tuple[str, float] | None = None

    def look(self, below: Iterable[int]) -> str | None:
        """Look at the processes that are there; return how the ServerApp was lost, None while it was not.

        Args:
            below: The ids of all processes below the SuperLink that are alive.
        """
        states = {state_of(number) for number in below if _PROGRAM in command_of(number)} - {""}
        self._seen = self._seen or bool(states)
        if not self._seen or states - {_STOPPED}:
            self._lost_since = None
            return None
        how, patience = ("stands still", STILL_SECONDS) if states else ("is gone", GONE_SECONDS)
        if self._lost_since is None or self._lost_since[0] != how:
            self._lost_since = how, self._now()
        return how if self._now() - self._lost_since[1] >= patience else None


def kill_stopped(numbers: Iterable[int]) -> None:
    """Kill those of some processes that stand still: no other signal reaches them, and all would wait for their end."""
    for number in numbers:
        if state_of(number) == _STOPPED:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
