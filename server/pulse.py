"""Pulse of a ServerApp: a file that it touches with each call of its own loop, for whoever started it to look at.

Flower's heartbeats say that the process lives: a thread of their own sends them, also while the loop hangs.
"""

import contextlib
import faulthandler
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import Grid

from server.over_grid import OverGrid

PULSE_VARIABLE = "SPATL_SERVER_PULSE"
"""Environment variable with the path of the file, where anybody looks at it."""


class PulsingGrid(OverGrid):
    """Grid over another one, each call of which is a sign of work: whatever is waited for is asked for again and again.

    Args:
        inner: The grid that carries the messages.
        pulse: The file that is touched; nothing is said where that fails.
    """

    def __init__(self, inner: Grid, pulse: Path) -> None:
        super().__init__(inner)
        self._pulse = pulse

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of the inner grid."""
        self._touch()
        return super().get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages by the inner grid."""
        self._touch()
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull replies from the inner grid."""
        self._touch()
        return super().pull_messages(message_ids)

    def _touch(self) -> None:
        with contextlib.suppress(OSError):
            os.utime(self._pulse)


def pulsing(grid: Grid) -> Grid:
    """Return a grid that touches the file of the environment; as it is where there is none."""
    path = os.environ.get(PULSE_VARIABLE)
    return PulsingGrid(grid, Path(path)) if path else grid


@contextlib.contextmanager
def telling_where_it_hangs(log: Path) -> Iterator[None]:
    """Have this process write where each of its threads is to a log, when it is asked to, as long as the context lasts.

    Args:
        log: A file that is appended to.
    """
    if PULSE_VARIABLE not in os.environ or not hasattr(faulthandler, "register"):
        yield
        return
    with log.open("a") as file:
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
        try:
            yield
        finally:
            faulthandler.unregister(signal.SIGUSR1)
