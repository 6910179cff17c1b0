"""Waiting for clients before a round, before the last evaluation, and while they rest: it is not a failed round.

Devices are waited for until enough are back, and whoever looks at the run's directory sees for whom and since when.
Those of a simulation are this machine's: what does not come within a while does not come at all.
"""

import logging
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from flwr.serverapp import Grid

from spatl.config.sections import ServerConfig
from spatl.errors import SpatlError
from spatl.rounds.answers import Outcome
from spatl.runs.waiting import Waiting, read_waiting, write_waiting

logger = logging.getLogger(__name__)

REST_SECONDS = 60.0
"""Time after which devices that all rest are asked again."""
_POLL_SECONDS = 0.5


def await_clients(
    grid: Grid, nodes: Mapping[int, int], server: ServerConfig, server_round: int, *, run: Path | None,
    everyone: Collection[int] = (),
) -> set[int]:  # fmt: skip
    """Wait until as many of a round's clients are connected as it needs replies; return the nodes that are.

    Of devices, those that were drawn are waited for only a while where enough others are there: the next round draws
    others, and one that never comes back blocks no run.

    Args:
        grid: Where they are.
        nodes: The node of each client that is to be asked.
        server: Its settings.
        server_round: The round.
        run: Directory of the run, where clients are devices; None in a simulation.
        everyone: The nodes of all clients that a round may draw.

    Raises:
        SpatlError: They are devices, and too few are there after `server.give_up_seconds`.
    """
    needed, began, said = min(server.min_replies, len(nodes)), time.time(), -1
    started = time.monotonic()
    patience = server.connect_timeout_seconds if run is None else server.give_up_seconds
    while True:
        connected = set(grid.get_node_ids())
        missing = tuple(client for client, node in nodes.items() if node not in connected)
        there = len(nodes) - len(missing)
        waited = time.monotonic() - started
        is_over = patience is not None and waited >= patience
        if there >= needed or (is_over and run is None):
            break
        if len(connected.intersection(everyone)) >= needed and waited >= server.connect_timeout_seconds:
            logger.warning(
                "round %d goes on without clients that were drawn for it: for %.0f s %s away, and others are there",
                server_round, waited, _told(missing), extra={"round": server_round},
            )  # fmt: skip
            if run is not None:
                write_waiting(run, None)
            return connected
        waiting = Waiting(server_round, began, needed, there, missing)
        if is_over:
            raise SpatlError(f"{waiting}; given up after {patience:g} s (server.give_up_seconds), go on with --resume")
        if there != said:
            logger.warning("%s", waiting, extra={"round": server_round})
            if run is not None:
                write_waiting(run, waiting)
            said = there
        time.sleep(_POLL_SECONDS)
    if said >= 0 and run is not None:
        write_waiting(run, None)
        logger.warning("round %d goes on after %.0f s: enough clients are connected", server_round,
                       time.monotonic() - started, extra={"round": server_round})  # fmt: skip
    return connected


def _told(missing: tuple[int, ...]) -> str:
    numbers = ", ".join(map(str, missing))
    return f"client {numbers} is" if len(missing) == 1 else f"clients {numbers} are"


class Rest:
    """Rest of a round's devices: while their owners let so many rest that nothing can come of it, it does not count.

    Without it a night would be as many rounds without an update as fit into it.

    Args:
        server_round: The round.
        server: The run's settings.
        run: Its directory, for whoever looks at it meanwhile.
    """

    def __init__(self, server_round: int, server: ServerConfig, *, run: Path) -> None:
        self._round, self._server, self._run = server_round, server, run
        self._began, self._started = 0.0, 0.0
        self._resting, self._asked = set[int](), set[int]()

    def is_over(self, outcome: Outcome) -> bool:
        """Return whether a round counts, with what came of it; say so if others were waited for before."""
        rests = (
            bool(outcome.not_now) and outcome.ending is None and outcome.rejected.keys() == outcome.not_now
            and len(outcome.trained) < max(1, self._server.min_replies)
        )  # fmt: skip
        if not rests and self._began:
            write_waiting(self._run, None)
            logger.warning("round %d goes on after %.0f s: enough devices work again", self._round,
                           time.monotonic() - self._started, extra={"round": self._round})  # fmt: skip
        return not rests

    def wait(self, outcome: Outcome, asked: Collection[int], others: Collection[int]) -> set[int]:
        """Wait for a while, unless there are devices that have not been asked; return those that are known to rest.

        Args:
            outcome: What came of the round.
            asked: Who was asked in it.
            others: Who could be.

        Raises:
            SpatlError: All have rested for longer than `server.give_up_seconds`.
        """
        news = outcome.not_now - self._resting
        self._resting |= news
        self._asked.update(asked)
        if news and set(others) - self._asked:
            return self._resting
        if not self._began:
            self._began, self._started = time.time(), time.monotonic()
        waiting = Waiting(
            self._round, self._began, max(1, self._server.min_replies), len(outcome.trained), (),
            resting=tuple(sorted(self._resting)),
        )  # fmt: skip
        patience = self._server.give_up_seconds
        if patience is not None and time.monotonic() - self._started >= patience:
            raise SpatlError(f"{waiting}; given up after {patience:g} s (server.give_up_seconds), go on with --resume")
        if read_waiting(self._run) != waiting:
            logger.warning("%s", waiting, extra={"round": self._round})
            write_waiting(self._run, waiting)
        time.sleep(REST_SECONDS)
        self._resting, self._asked = set(), set()
        return set()
