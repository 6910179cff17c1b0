"""Pulling of replies that costs nobody but its sender: what is odd becomes an error of the client that sent it.

Flower 1.41's grid pulls all that has come in one call. A reply whose objects do not fit together raises in it, which
ends the run; one whose objects are announced and never sent is waited for, for up to two hours, while the others lie
there; and what a reply says of itself (whose it is, what it answers) is read from an object that its sender wrote, and
not from what the SuperLink has checked. Here each reply is taken apart on its own, one that is not whole yet waits
beside the others, and whose it is says the SuperLink.
"""

import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from flwr.app import Error, Message
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.constant import ErrorCode
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from server.over_grid import OverGrid
from spatl.errors import printable
from spatl.wire.blob import CLIENT_REFUSED

if TYPE_CHECKING:
    from flwr.superlink.grid.http_grid import HttpGrid

logger = logging.getLogger(__name__)

MOST_OBJECTS: Final = 8
"""The most objects of a reply: the message, its records and their dictionary are four."""
_HTTP_GRID = "flwr.superlink.grid.http_grid"
_PATIENCE_SECONDS = 300.0  # for the objects of a reply that has been announced
_NAME = re.compile(r"[a-z0-9_.]{0,64}")  # of a message's type and group


class OddReply(Exception):
    """Oddness of a reply, which is no fault of any other client's."""


@dataclass(eq=False)
class _Announced:
    """A reply of which not all objects have come.

    Attributes:
        metadata: As the SuperLink has checked it.
        missing: The ids of what has not come.
        contents: What has, by id.
        until: Until when the others are waited for.
    """

    metadata: Metadata
    missing: list[str]
    until: float
    contents: dict[str, bytes] = field(default_factory=dict)


class CarefulGrid(OverGrid):
    """Grid over Flower's whose replies are taken apart one by one.

    Args:
        inner: Flower's grid.
        patience_seconds: How long the objects of a reply are waited for.
    """

    def __init__(self, inner: "HttpGrid", *, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        super().__init__(inner)
        self._flowers = inner
        self._patience = patience_seconds
        self._announced: list[_Announced] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull the replies to questions that are whole by now; of what is odd or does not come, an error.

        The SuperLink forgets a question once it has announced the reply, whole or not: asked about it again, it would
        say that there is no such message, and that would be taken for the reply.
        """
        client, now = self._client, time.monotonic()
        announced = {each.metadata.reply_to_message_id for each in self._announced}
        asked = [each for each in message_ids if each not in announced]
        response = client.PullMessages(PullAppMessagesRequest(message_ids=asked))
        pulled = []
        for told, tree in zip(response.messages_list, response.message_object_trees, strict=True):
            try:
                metadata = metadata_from_proto(told.metadata)
            except ValueError as error:  # which the SuperLink refuses, too
                logger.warning("ignored what node %d sent: %s", told.metadata.src_node_id, printable(str(error)[:200]))
                continue
            ids = dict.fromkeys(each.object_id for each in _first(tree, MOST_OBJECTS + 1))
            reason = _oddness(metadata, len(ids))
            if reason is None:
                self._announced.append(_Announced(metadata, list(ids), until=now + self._patience))
            else:
                self._confirm(metadata)
                pulled.append(_refused(metadata, reason))
        waiting = []
        for each in self._announced:
            reply = self._reply(each, now)
            pulled += [] if reply is None else [reply]
            waiting += [each] if reply is None else []
        self._announced = waiting
        return pulled

    def _confirm(self, metadata: Metadata) -> None:
        """Have the SuperLink forget the objects of a reply."""
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self._flowers.node, run_id=metadata.run_id, message_object_id=metadata.message_id
            )
        )

    @property
    def _client(self) -> Any:
        """Client of the Runtime API, which Flower has connected."""
        return self._flowers._runtime_client

    def _reply(self, announced: _Announced, now: float) -> Message | None:
        """Return a reply, or an error in its place; None while it is not whole."""
        metadata, client = announced.metadata, self._client
        while announced.missing:
            asked = PullObjectRequest(
                node=self._flowers.node, run_id=metadata.run_id, object_id=announced.missing[-1]
            )  # fmt: skip
            found = client.PullObject(asked)
            if not found.object_found or (not found.object_available and now >= announced.until):
                reason = "the objects of its reply did not come"
                return make_message(metadata, error=Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason))
            if not found.object_available:
                return None
            announced.contents[announced.missing.pop()] = found.object_content
        self._confirm(metadata)
        try:
            return _inflated(metadata, announced.contents)
        except OddReply as error:
            return _refused(metadata, str(error))


def careful(grid: Grid) -> Grid:
    """Return Flower's grid over HTTP with care; any other one, whose clients are this machine's, as it is."""
    module = sys.modules.get(_HTTP_GRID)  # which loads a data base: a second of every run that has no such grid
    return CarefulGrid(grid) if module is not None and isinstance(grid, module.HttpGrid) else grid


def _oddness(metadata: Metadata, num_objects: int) -> str | None:
    """Return what is odd about a reply of so many objects before any of them is looked at."""
    if num_objects > MOST_OBJECTS:
        return f"its reply has more than {MOST_OBJECTS} objects"
    if not all(_NAME.fullmatch(name) for name in (metadata.message_type, metadata.group_id)):
        return "its reply is of no type or group that a question has"
    return None


def _inflated(metadata: Metadata, contents: dict[str, bytes]) -> Message:
    """Return the message that objects make, with what the SuperLink says of it.

    Raises:
        OddReply: They make none.
    """
    try:
        message = inflate_object_from_contents(metadata.message_id, contents)
    except Exception as error:  # of a decoder of Flower's, for bytes that anybody may have written
        raise OddReply(f"its reply is none that Flower can read ({type(error).__name__})") from error
    if not isinstance(message, Message) or not (message.has_error() or message.has_content()):
        raise OddReply("its reply is no message")
    if message.has_error():
        return make_message(metadata, error=message.error)
    return make_message(metadata, content=message.content)


def _refused(metadata: Metadata, reason: str) -> Message:
    return make_message(metadata, error=Error(CLIENT_REFUSED, reason))


def _first(tree: ObjectTree, number: int) -> Iterator[ObjectTree]:
    """Yield so many objects of a tree, its root first."""
    waiting = [tree]
    while waiting and number:
        each = waiting.pop()
        yield each
        waiting.extend(each.children)
        number -= 1
