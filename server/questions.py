"""Questions that are out: the messages by which replies are matched, and lost ones known.

Flower's own errors carry the SuperLink as their source (node 1), so that a reply is matched by the message it answers.
A SuperLink does not take every message either: one to a node that never was there is refused, and reaches nobody.
"""

from collections.abc import Collection, Iterable, Mapping

from flwr.app import Message
from flwr.app.metadata import Metadata
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode

LOST = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE)


class Questions:
    """Messages of one kind and round, at most one to each node.

    Args:
        messages: They; a grid that sends them writes their ids into them, or takes the id of a refused one away.
        connected: The nodes that were there when they were made.
    """

    def __init__(self, messages: Iterable[Message] = (), connected: Collection[int] = ()) -> None:
        # Not the messages themselves, whose contents are large.
        self._asked = {message.metadata.dst_node_id: message.metadata for message in messages}
        self._connected = connected
        self._nodes: Mapping[str, int] | None = None

    def node_of(self, reply: Message) -> int | None:
        """Return the node whose question a reply answers; None where it answers none of these, or does not say which.

        Kind and round do not tell questions apart: devices are asked twice to register, and once more whoever was slow.
        """
        if self._nodes is None or len(self._nodes) < len(self._asked):  # ids are there once all are sent
            self._nodes = {asked.message_id: node for node, asked in self._asked.items() if asked.message_id}
        own = reply.metadata
        node = self._nodes.get(own.reply_to_message_id)
        if node is None or own.src_node_id == SUPERLINK_NODE_ID:
            return node
        return node if own.src_node_id == node and self._is_of(node, own) else None  # a client speaks for itself

    def _is_of(self, node: int, reply: Metadata) -> bool:
        """Return whether a reply is of the kind and round of a node's question."""
        asked = self._asked.get(node)
        return asked is not None and (asked.message_type, asked.group_id) == (reply.message_type, reply.group_id)

    def was_taken(self, node: int, *, answered: bool) -> bool:
        """Return whether a node has fetched its question, as far as anyone knows: it answered, or could have."""
        return answered or (bool(self._asked[node].message_id) and node in self._connected)


def is_lost(reply: Message) -> bool:
    """Return whether a reply is Flower's own, which says in place of a node that no answer will come."""
    return reply.has_error() and reply.error.code in LOST


def is_gone(reply: Message) -> bool:
    """Return whether a reply is Flower's own, which says that a node is not connected any more."""
    return reply.has_error() and reply.error.code == ErrorCode.NODE_UNAVAILABLE
