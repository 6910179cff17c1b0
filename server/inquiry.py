"""Inquiry: questions to nodes before the first round, repeated where a node goes before it answers, and counted."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from flwr.app import Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode

from server.grids import FederationGrid
from server.questions import Questions, is_lost
from server.replies import error_line, own_record
from server.traffic import Traffic, message_traffic
from spatl.runs.ledger import Direction, Entry, entry
from spatl.wire.blob import BLOB

logger = logging.getLogger(__name__)

_CONNECT_POLL_SECONDS = 0.5
_FIRST_ROUND = "1"  # as messages of the registration say
_ATTEMPTS = 3  # to have an answer of one node, which may go before it gives one


@dataclass(frozen=True, eq=False)
class Inquiry:
    """Questions to the nodes of a grid, and the traffic that they and their answers make.

    Attributes:
        grid: Where the nodes are.
        keys: The client whose key each node holds, by node id, where nodes are authenticated.
        connect_seconds: How long nodes that are not connected are waited for.
        reply_seconds: How long answers are waited for.
    """

    grid: FederationGrid
    keys: Mapping[int, int]
    connect_seconds: float
    reply_seconds: float
    _traffic: dict[int, list[tuple[Direction, Traffic, int]]] = field(default_factory=dict)

    def await_nodes(self, are_enough: Callable[[set[int]], bool]) -> set[int]:
        """Wait for a while until the connected nodes are enough; return those that are connected."""
        deadline = time.monotonic() + self.connect_seconds
        while not are_enough(connected := set(self.grid.get_node_ids())) and time.monotonic() < deadline:
            time.sleep(_CONNECT_POLL_SECONDS)
        return connected

    def ask(self, content: RecordDict, nodes: Iterable[int]) -> Iterator[tuple[int, Message | str]]:
        """Ask nodes one question; those that go before they answer are asked again when they are back.

        Yields:
            Each node with its reply, or with the reason why there is none.
        """
        waiting, reasons = set(nodes), dict[int, str]()
        for attempt in range(1, _ATTEMPTS + 1):
            connected = self.await_nodes(waiting.issubset)
            for node in sorted(reasons.keys() & waiting - connected):
                waiting.discard(node)
                yield node, reasons[node]
            messages = [
                Message(content, dst_node_id=node, message_type=MessageType.QUERY, group_id=_FIRST_ROUND)
                for node in sorted(waiting)
            ]
            questions, lost = Questions(messages, connected), dict[int, str]()
            asked_of_all = _traffic_of(content, "downlink")
            for reply in self.grid.send_and_receive(messages, timeout=self.reply_seconds):
                asked = questions.node_of(reply)
                if asked is None or (asked not in waiting and asked not in lost):
                    # A second answer, or one to a question before this: of no use, and it came all the same.
                    if reply.has_content() and reply.metadata.message_type == MessageType.QUERY:
                        self._enter(reply.metadata.src_node_id, "uplink", *_traffic_of(reply.content, "uplink"))
                    continue
                waiting.discard(asked)
                lost.pop(asked, None)  # it is back
                if is_lost(reply) or (reply.has_error() and reply.error.code == ErrorCode.CLIENT_APP_CRASHED):
                    lost[asked] = error_line(reply.error)
                    continue
                self._enter(asked, "downlink", *asked_of_all)
                if reply.has_content():
                    self._enter(asked, "uplink", *_traffic_of(reply.content, "uplink"))
                yield asked, reply
            for node, copies in self.grid.copies.items():
                for _ in range(copies):
                    self._enter(node, "downlink", *asked_of_all)
            for node in sorted(waiting | lost.keys()):
                if questions.was_taken(node, answered=False):
                    self._enter(node, "downlink", *asked_of_all)
                if node in waiting or attempt == _ATTEMPTS:
                    yield node, lost.get(node, "no answer came in time")
                    continue
                logger.warning(
                    "%s could not register, it will be asked again: %s", self.name_of(node), lost[node],
                    extra={"client": self.keys[node]} if node in self.keys else {},
                )  # fmt: skip
            waiting, reasons = set(lost), lost
            if not waiting:
                return

    def entries(self, clients: Mapping[int, int], *, server_round: int) -> Iterator[Entry]:
        """Yield the ledger's entries of all questions and answers, given the client of each node.

        Of a node of which no client is known there is nothing.

        Args:
            clients: Clients by node id.
            server_round: The round that they belong to: the one that is next.
        """
        for node, passed in self._traffic.items():
            client = clients.get(node, self.keys.get(node))
            if client is None:
                continue
            for direction, traffic, indices in passed:
                yield entry(
                    server_round=server_round, client=client, direction=direction, phase="query",
                    num_bytes=traffic.num_bytes, opposite=traffic.opposite, sections={"indices": indices},
                )  # fmt: skip

    def name_of(self, node: int) -> str:
        """Return the name of a node's client in messages: its number where the node has its key."""
        return f"client {self.keys[node]}" if node in self.keys else f"the client at node {node}"

    def _enter(self, node: int, direction: Direction, traffic: Traffic, indices: int) -> None:
        self._traffic.setdefault(node, []).append((direction, traffic, indices))


def _traffic_of(content: RecordDict, direction: Direction) -> tuple[Traffic, int]:
    """Count the bytes of a message, and of them those of indices."""
    own = own_record(content)
    blob = None if own is None else own.get(BLOB)
    # The clients' saliencies are there to agree on indices.
    indices = len(blob) if direction == "uplink" and isinstance(blob, bytes) else 0
    traffic = message_traffic(content, direction=direction, message_type=MessageType.QUERY, group_id=_FIRST_ROUND)
    return traffic, indices
