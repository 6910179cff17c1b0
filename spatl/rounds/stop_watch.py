"""Stop-watch of a round: seconds that its parts took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StopWatch:
    """Seconds that parts of a round took, by name, and all of it so far."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Take the time of a part."""
        started = time.perf_counter()
        yield
        self.seconds[part] = time.perf_counter() - started

    def leave_out(self, part: str, seconds: float) -> None:
        """Take off a part what went to somebody else."""
        self.seconds[part] -= seconds
        self._started += seconds

    @property
    def total(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._started
