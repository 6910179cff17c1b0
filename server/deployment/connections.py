"""Connections of the SuperLink that wait for nobody: uvicorn's HTTP/1.1, with an end to those that are slow or idle.

uvicorn ends a connection that is silent after an answer. It waits for ever for the first byte of a request, for the end
of its head, and for a peer to read what it asked for; so whoever reaches the port could hold as many connections as the
system allows. The bodies of requests are the gate's (`server.deployment.gate`). Heads are bounded in length by h11,
which is why this is h11 and not the faster httptools.
"""

import asyncio
from dataclasses import dataclass, field
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

GRACE_SECONDS = 30.0
"""How long a peer may be silent in the middle of a body, either way."""
LEAST_BYTES_PER_SECOND = 1024
"""The rate that it must keep to after that, in the mean."""


@dataclass
class Doorkeeper:
    """Limits of the connections to one port, and those that there are.

    Attributes:
        port: The port; others are not counted.
        most: How many connections it may have at once.
        most_of_one: How many of them one address may have; half of them if nothing is said, for the clients of one
            network may share an address.
        head_seconds: How long the head of a request may take from the connection or the answer before it.
        grace_seconds: How long nothing need be read of an answer.
        open: The connections, and the address of each.
    """

    port: int
    most: int
    head_seconds: float = 20.0
    grace_seconds: float = GRACE_SECONDS
    most_of_one: int | None = None
    open: dict[object, str] = field(default_factory=dict)

    def admits(self, address: str) -> bool:
        """Return whether there is room for one more connection of an address."""
        of_one = max(1, self.most // 2) if self.most_of_one is None else self.most_of_one
        return len(self.open) < self.most and sum(each == address for each in self.open.values()) < of_one


def hurried_protocol(keeper: Doorkeeper) -> "type[HurriedProtocol]":
    """Return uvicorn's protocol with the limits of a doorkeeper."""

    class Kept(HurriedProtocol):
        doorkeeper = keeper

    return Kept


class HurriedProtocol(H11Protocol):
    """Protocol of one connection, which ends where its peer keeps it waiting.

    Attributes:
        doorkeeper: The limits; of a class that `hurried_protocol` returns.
    """

    doorkeeper: ClassVar[Doorkeeper]
    _head: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the head of a request, or end a connection that is one too many."""
        super().connection_made(transport)
        if self.server is not None and self.server[1] == self.doorkeeper.port:
            address = self.client[0] if self.client is not None else ""
            if not self.doorkeeper.admits(address):
                transport.abort()
                return
            self.doorkeeper.open[self] = address
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self.doorkeeper.open.pop(self, None)
        for timer in (self._head, self._writing):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Begin to wait for the next head."""
        self._await_head()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Begin to watch how fast an answer is read."""
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        """Stop watching."""
        if self._writing is not None:
            self._writing.cancel()
        super().resume_writing()

    def _await_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
        self._head = self.loop.call_later(self.doorkeeper.head_seconds, self._end_without_head)

    def _end_without_head(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

    def _watch_writing(self) -> None:
        waiting = self.transport.get_write_buffer_size()
        self._writing = self.loop.call_later(self.doorkeeper.grace_seconds, self._end_unread, waiting)

    def _end_unread(self, before: int) -> None:
        """End the connection unless enough was read since there were so many bytes to read."""
        read = before - self.transport.get_write_buffer_size()
        if read < LEAST_BYTES_PER_SECOND * self.doorkeeper.grace_seconds:
            self.transport.abort()
        else:
            self._watch_writing()
