"""A tap: a TCP proxy on loopback that keeps what passes, read afterwards as the HTTP/1.1 calls it was.

Flower 1.41 speaks protobuf over HTTP/1.1 (one POST per call, bodies by content-length), without TLS on loopback here,
so that every byte on the socket is either a call's body or its request line and headers.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

_LISTEN_BACKLOG = 64
_CHUNK_BYTES = 1 << 16
_HEADER_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Call:
    """One HTTP call of a SuperNode.

    Attributes:
        path: What was called, e.g. `/v1/fleet/pull-object`.
        request: The body that went up.
        response: The body that came down.
        request_header_bytes: Request line, headers and the empty line after them.
        response_header_bytes: Status line, headers and the empty line after them.
    """

    path: str
    request: bytes
    response: bytes
    request_header_bytes: int
    response_header_bytes: int


class Tap:
    """A proxy to one port of this machine; `port` is its own. Close it before reading what passed."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=_LISTEN_BACKLOG)
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._streams: list[tuple[bytearray, bytearray]] = []
        self._start(self._accept)

    def close(self) -> None:
        """Close all connections and wait for the threads that served them."""
        # A plain close would leave the thread in accept() until somebody connects.
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._sockets):
            each.close()

    def calls(self) -> list[Call]:
        """All calls that were answered, connection by connection in the order they were made.

        Raises:
            ValueError: What passed was not HTTP/1.1 as Flower speaks it.
        """
        return [call for up, down in self._streams for call in _calls(bytes(up), bytes(down))]

    def unanswered(self) -> list[tuple[int, int]]:
        """What each connection carried beside its answered calls, bytes up and down: of a call that was cut off, or 0.

        There is one such call at most, for HTTP/1.1 asks again on a connection only once it has its answer.
        """
        return [_unanswered(bytes(up), bytes(down)) for up, down in self._streams]

    def _start(self, target: object, *args: object) -> None:
        assert callable(target)
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:
                client.close()
                continue
            up, down = bytearray(), bytearray()
            self._sockets += [client, server]
            self._streams.append((up, down))
            self._start(_pump, client, server, up)
            self._start(_pump, server, client, down)


def _pump(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
    """Pass bytes on until the source ends; keep them."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK_BYTES):
            kept += data
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _calls(up: bytes, down: bytes) -> Iterator[Call]:
    """The calls of one connection: HTTP/1.1 answers in the order it is asked."""
    requests, responses = list(_messages(up)), list(_messages(down))
    for (head, request), (status, response) in zip(requests, responses, strict=False):
        path = head.split(b" ", 2)[1].decode("ascii")
        yield Call(path, request, response, len(head), len(status))


def _unanswered(up: bytes, down: bytes) -> tuple[int, int]:
    calls = list(_calls(up, down))
    return (
        len(up) - sum(call.request_header_bytes + len(call.request) for call in calls),
        len(down) - sum(call.response_header_bytes + len(call.response) for call in calls),
    )


def _messages(stream: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Split one direction into (header with the empty line, body); an unfinished last message is left out."""
    position = 0
    while (end := stream.find(_HEADER_END, position)) >= 0:
        header = stream[position : end + len(_HEADER_END)]
        length = _content_length(header)
        start = position + len(header)
        position = start + length
        if position > len(stream):
            return
        yield header, stream[start:position]


def _content_length(header: bytes) -> int:
    for line in header.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    raise ValueError(f"expected HTTP/1.1 with a content-length, got {header!r}")
