"""Watch over the process of a ServerApp: that it is there, and that it works.

Flower says only after a minute that it has heard nothing of one, and of one whose loop hangs it hears for ever. A
process that was killed is gone at once, and one that was stopped stands still, for whoever can look (Linux). One that
works calls its grid again and again, whatever it waits for (`server.pulse`); in between it computes, as long as that
takes. So one that neither calls nor computes hangs, and is missed soon; one that computes and never calls may be at a
long step, and is missed when it takes longer than any step.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from spatl.deployment.processes import command_of, cpu_seconds, descendants, state_of, wants_cpu

GONE_SECONDS = 3.0
"""How long it may be gone, while what it left is on its way to the disk and to Flower."""
STILL_SECONDS = 15.0
"""How long it may stand still."""
IDLE_SECONDS = 120.0
"""How long it may neither call nor compute: twice the longest sleep of a ServerApp that works."""
IDLE_VARIABLE = "SPATL_IDLE_SECONDS"
"""Environment variable with another such time."""
_IDLE_SHARE = 0.01  # of a processor, which its other threads take
_IDLE_CPU_SECONDS = 0.2
_LONGEST_LOOK_SECONDS = 2.0
_TRACE_SECONDS = 0.5
_PROGRAM = "flwr-serverapp"
_STOPPED = "T"


class AppWatch:
    """Watch over the ServerApp among the processes below a SuperLink.

    Args:
        now: The time in seconds.
        pulse: The file that it touches as it goes; None where its work is not looked at.
        longest_step: How many seconds it may touch nothing though it computes; None for any number.
    """

    def __init__(
        self, now: Callable[[], float] = time.monotonic, *, pulse: Path | None = None, longest_step: float | None = None
    ) -> None:
        self._now = now
        self._seen = False
        self._lost_since: tuple[str, float] | None = None
        self._work = None if pulse is None else _WorkWatch(pulse, longest_step)
        self._looked = now()

    def look(self, below: Iterable[int]) -> str | None:
        """Look at the processes that are there; return how the ServerApp was lost, None while it was not.

        Args:
            below: The ids of all processes below the SuperLink that are alive.
        """
        apps = _apps(below)
        now = self._now()
        passed, self._looked = min(now - self._looked, _LONGEST_LOOK_SECONDS), now  # machines sleep
        states = {state_of(number) for number in apps} - {""}
        self._seen = self._seen or bool(states)
        if not self._seen or states - {_STOPPED}:
            self._lost_since = None
            return None if self._work is None else self._work.look(apps, passed)
        how, patience = ("stands still", STILL_SECONDS) if states else ("is gone", GONE_SECONDS)
        if self._lost_since is None or self._lost_since[0] != how:
            self._lost_since = how, now
        return how if now - self._lost_since[1] >= patience else None


class _WorkWatch:
    """Watch over what a ServerApp does.

    What counts is that the file changes, not its date, and time in which this process runs: clocks are set. A file that
    is not there tells nothing.
    """

    def __init__(self, pulse: Path, longest_step: float | None) -> None:
        self._pulse, self._longest = pulse, longest_step
        self._most_idle = float(os.environ.get(IDLE_VARIABLE, IDLE_SECONDS))
        self._touched = _touched(pulse)
        self._began = False
        self._silent, self._idle, self._spent = 0.0, 0.0, 0.0

    def look(self, apps: Collection[int], passed: float) -> str | None:
        touched = _touched(self._pulse)
        if not apps or touched is None or touched != self._touched:
            self._began = self._began or (touched is not None and touched != self._touched)
            self._touched, self._silent, self._idle = touched, 0.0, 0.0
            return None
        self._silent += passed
        if self._longest is not None and self._silent >= self._longest:
            return f"has asked for nothing for {self._longest:g} s (--longest-step)"
        if not self._began or self._computes(apps, passed):  # what it loads before may come from a network
            self._idle = 0.0
        return f"has done nothing for {self._most_idle:g} s" if self._idle >= self._most_idle else None

    def _computes(self, apps: Collection[int], passed: float) -> bool:
        """Return whether it, or what it has started, computes or would, since it was last seen to."""
        family = [*apps, *(number for app in apps for number in descendants(app))]
        spent = sum(map(cpu_seconds, family))
        self._idle += passed
        allowed = _IDLE_CPU_SECONDS + _IDLE_SHARE * self._idle
        if any(map(wants_cpu, family)) or not 0 <= spent - self._spent <= allowed:
            self._spent = spent
            return True
        return False


def _touched(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _apps(numbers: Iterable[int]) -> list[int]:
    return [number for number in numbers if _PROGRAM in command_of(number)]


def end_lost(numbers: Collection[int]) -> None:
    """Kill those of some processes that stand still, and the ServerApp, which first says where it is.

    No other signal reaches what stands still or hangs, and all would wait for its end.
    """
    stopped = [number for number in numbers if state_of(number) == _STOPPED]
    apps = _apps(numbers)
    if hasattr(signal, "SIGUSR1"):
        _send(apps, signal.SIGUSR1)
        time.sleep(_TRACE_SECONDS if apps else 0.0)
    _send({*stopped, *apps}, signal.SIGKILL)


def _send(numbers: Iterable[int], what: signal.Signals) -> None:
    for number in numbers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, what)
