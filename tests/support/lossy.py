"""Deployments in this process on a network that loses messages, by a clock that the tests move."""

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Message

import server.grids
from clients.app import app as client_app
from server.app import serve
from server.grids import InProcessGrid, StreamingGrid
from spatl.config.experiment import ExperimentConfig

WORK_SECONDS = 10.0
SEND_AGAIN_SECONDS = 1.0
"""How long a node takes for an answer, and for one that it has made before."""


class Clock:
    """Stands still but for who sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class LossyGrid(InProcessGrid):
    """Grid whose nodes work for a while on one message after the other, and which loses some on their way.

    Args:
        clock: Says what time it is.
        loses: Called with the direction, the client and the message, each time that one travels.
        settings: Of `InProcessGrid`.

    Attributes:
        asked: Every message that reached a node: the client, its type and its group.
    """

    def __init__(self, clock: Clock, loses: Callable[[str, int, Message], bool], **settings: Any) -> None:
        super().__init__(client_app, **settings)
        self._clock, self._lost = clock, loses
        self._queues: dict[int, deque[tuple[float, Message]]] = {node: deque() for node in self.contexts}
        self._free = dict.fromkeys(self.contexts, 0.0)
        self._replies: dict[str, Message] = {}
        self.asked: list[tuple[int, str, str]] = []

    def push_messages(self, messages):
        messages = list(messages)
        ids = list(super().push_messages(messages))
        for message in messages:
            node = message.metadata.dst_node_id
            if not self._lost("downlink", node - 2, message):
                self._queues[node].append((self._clock.now, message))
        return ids

    def pull_messages(self, message_ids):
        for node, queue in self._queues.items():
            while queue and self._works(node, *queue[0]):
                queue.popleft()
        return [self._replies.pop(message_id) for message_id in list(message_ids) if message_id in self._replies]

    def _works(self, node: int, since: float, message: Message) -> bool:
        """Whether a node has done with a message by now."""
        asked = (node - 2, str(message.metadata.message_type), message.metadata.group_id)
        seconds = SEND_AGAIN_SECONDS if asked in self.asked else WORK_SECONDS
        ready = max(since, self._free[node]) + seconds
        if ready > self._clock.now:
            return False
        self._free[node] = ready
        self.asked.append(asked)
        (reply,) = super().pull_messages([message.metadata.message_id])
        if not self._lost("uplink", node - 2, message):
            self._replies[message.metadata.message_id] = reply
        return True


def losing_one(direction: str, client: int, kind: str, group: str) -> Callable[[str, int, Message], bool]:
    """Loses the first message of a kind and round that goes one way."""
    lost = []

    def loses(way: str, whose: int, message: Message) -> bool:
        asked = message.metadata
        found = (way, whose, asked.message_type, asked.group_id) == (direction, client, kind, group) and not lost
        lost.extend([message] if found else [])
        return found

    return loses


def serve_over(
    config: ExperimentConfig,
    base: Path,
    clock: Clock,
    *,
    loses: Callable[[str, int, Message], bool],
    patch: Any,
    data: Path | None = None,
) -> tuple[dict[str, Any], LossyGrid]:
    """Run a config on devices of this process, each with a state of its own in `base`; `patch` is a MonkeyPatch.

    Each has its own `.npz` in `data` where that is given.
    """
    patch.setattr(server.grids, "time", clock)
    run = base / "run"
    values = {"config": config.to_json(), "out": str(run), "run": "tiny"}
    inner = LossyGrid(clock, loses, num_clients=config.partition.num_clients, run_config=values)
    for context in inner.contexts.values():
        client = context.node_config["partition-id"]
        context.node_config["state-dir"] = str(base / f"device-{client}")
        if data is not None:
            context.node_config["data-dir"] = str(data / f"{client}.npz")
    grid = StreamingGrid(inner, ask_again_after=config.server.ask_again_after)
    return serve(grid, config, run, devices=True), inner
