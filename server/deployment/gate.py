"""Gate of the SuperLink: who may ask for what at which socket, and how much of a body is read for whom.

Flower 1.41 serves three APIs on one port and authenticates only the SuperNodes of one, the Fleet API, once it has read
all that they sent. The gate looks at a request before that: at its socket, path and token; at the length of its body,
of which nothing is read where it is more than any message has, or more than a few kilobytes without the signature of a
client; and, of what a client sends as a reply, whether it is one.
"""

import asyncio
import hmac
import logging
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from google.protobuf.message import DecodeError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.deployment.connections import GRACE_SECONDS, LEAST_BYTES_PER_SECOND
from server.deployment.signatures import signer_of
from spatl.errors import SpatlError
from spatl.json_files import read_json
from spatl.runs.files import MOST_BYTES

TOKEN_HEADER = "x-spatl-token"
OPEN_PATH = "/v1/spatl/open"
DESCRIPTION_BYTES = (4 << 20) + (64 << 10)
"""How long it may be before the registration is over: a description of data, and what is around it."""

_FLEET = "/v1/fleet/"
_TASKS = ("/v1/runtime/", "/health")
_REPLY, _OBJECT = f"{_FLEET}push-messages", f"{_FLEET}push-object"
_SMALL = 64 << 10  # of a request of anybody
_REPLY_BYTES = 256 << 10  # metadata, the ids of a few objects, the reason of an error with its traceback
_OWN_BYTES = 64 << 20  # of this machine's processes, beside eight times a message: an app, a download
_MOST_OBJECTS = 8  # of a reply: the message, its records and their dictionary are four
_AT_ONCE = 2  # messages of one client that are being read
_SAY_SECONDS = 10.0
_OK, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _TIMEOUT, _TOO_LARGE, _TOO_MANY, _UNAVAILABLE = (
    200, 401, 403, 404, 408, 413, 429, 503,
)  # fmt: skip

logger = logging.getLogger(__name__)


class Refused(Exception):
    """Refusal of a request.

    Args:
        status: HTTP's.
        reason: For the log; nothing is said of what is not logged.
    """

    def __init__(self, status: int, reason: str = "") -> None:
        super().__init__(reason)
        self.status = status


class Gate:
    """ASGI middleware that lets a request through by its socket, path, token and body.

    Args:
        app: The SuperLink.
        private_port: The port of the private socket; every other one is public.
        token: What opens the Control API on the private socket.
        registration: The file in which the ServerApp says how long a body may be; None for as long as before.
        grace_seconds: How long a body may be silent.
    """

    def __init__(
        self, app: ASGIApp, *, private_port: int, token: str, registration: Path | None = None,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:  # fmt: skip
        self._app = app
        self._private_port = private_port
        self._token = token.encode()
        self._grace = grace_seconds
        self._opened = False
        self._keys: frozenset[bytes] | None = None
        self._lengths = MessageLengths(registration)
        self._reading: Counter[bytes] = Counter()  # bytes by client
        self._said: dict[int, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on with its body."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._admitted(scope, receive)
        except Refused as refused:
            self._say(refused, scope)
            await _answer(send, refused.status)
            return
        if body is None:
            await _answer(send, _OK)
            return
        await self._app(scope, _replay(body, receive), send)

    async def _admitted(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the body of a request to pass on; None for one that is done.

        Raises:
            Refused: It is not to be passed on.
        """
        if scope["type"] != "http":
            raise Refused(_FORBIDDEN)
        path, server, headers = scope["path"], scope["server"], dict(scope["headers"])
        if server is None or server[1] != self._private_port:
            if not path.startswith(_FLEET):
                raise Refused(_NOT_FOUND)
            if not self._opened:
                raise Refused(_UNAVAILABLE)  # SuperNodes try again
            return await self._from_the_network(path, headers, receive)
        if not path.startswith(_TASKS):
            given = headers.get(TOKEN_HEADER.encode(), b"")
            if not hmac.compare_digest(given, self._token):
                raise Refused(_FORBIDDEN)
        body = await self._read(receive, headers, self._lengths.most(0) * 8 + _OWN_BYTES)
        if path == OPEN_PATH:
            self._open(body)
            return None
        return body

    def _open(self, keys: bytes) -> None:
        """Let SuperNodes in; where they are authenticated, with their public keys (PEM, in base64, one a line)."""
        self._keys = frozenset(b64decode(line) for line in keys.splitlines()) if keys else None
        self._opened = True

    async def _from_the_network(self, path: str, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        length = _length_of(headers)
        most = {_REPLY: _REPLY_BYTES, _OBJECT: self._lengths.most(length or 0)}.get(path, _SMALL)
        if most > _SMALL and (length is None or length > _SMALL) and self._keys is not None:
            if (length or 0) > most:
                raise Refused(_TOO_LARGE, f"{length} bytes, at most {most} are in a message")
            signer = signer_of(headers)
            if signer not in self._keys:
                raise Refused(_UNAUTHORIZED, f"{length or 'unknown'} bytes without the signature of a client")
            with self._counted(signer, most if length is None else length, _AT_ONCE * most):
                body = await self._read(receive, headers, most)
        else:
            body = await self._read(receive, headers, most)
        if path == _REPLY:
            _check_reply(body)
        return body

    @contextmanager
    def _counted(self, signer: bytes, length: int, most: int) -> Iterator[None]:
        """Count what is being read of one client.

        Raises:
            Refused: It is too much at once.
        """
        if self._reading[signer] + length > most:
            raise Refused(_TOO_MANY, f"{self._reading[signer] + length} bytes of one client at once")
        self._reading[signer] += length
        try:
            yield
        finally:
            self._reading[signer] -= length

    async def _read(self, receive: Receive, headers: dict[bytes, bytes], most: int) -> bytes:
        """Return a body of at most so many bytes.

        Raises:
            Refused: It is longer, or comes too slowly, or not to its end.
        """
        length = _length_of(headers)
        if length is not None and length > most:
            raise Refused(_TOO_LARGE, f"{length} bytes, at most {most} are in a message")
        parts, size, began = list[bytes](), 0, time.monotonic()
        while True:
            left = began + self._grace + size / LEAST_BYTES_PER_SECOND - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), min(left, self._grace))
            except TimeoutError:
                raise Refused(_TIMEOUT, f"{size} bytes in {time.monotonic() - began:.0f} s, and no more") from None
            if message["type"] != "http.request":
                raise Refused(_TIMEOUT)  # nobody is there to be answered
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise Refused(_TOO_LARGE, f"more than {most} bytes")
            if not message.get("more_body", False):
                return b"".join(parts)

    def _say(self, refused: Refused, scope: Scope) -> None:
        """Log a refusal that has a reason, of each kind one now and then, so that no stranger fills the disk."""
        now = time.monotonic()
        if str(refused) and now - self._said.get(refused.status, -_SAY_SECONDS) >= _SAY_SECONDS:
            self._said[refused.status] = now
            logger.warning("refused %s of %s (HTTP %d): %s", scope["path"], (scope.get("client") or "?")[0],
                           refused.status, refused)  # fmt: skip


class MessageLengths:
    """Length that a body may have: a first one, and from the registration on what the ServerApp says.

    Args:
        registration: The file in which it says so.
    """

    def __init__(self, registration: Path | None) -> None:
        self._path = registration
        self._most = DESCRIPTION_BYTES
        self._seen: int | None = None

    def most(self, wanted: int) -> int:
        """Return the length; the file is read anew where more is wanted and it has changed."""
        if wanted > self._most or self._seen is None:
            self._look()
        return self._most

    def _look(self) -> None:
        try:
            changed = self._path.stat().st_mtime_ns if self._path is not None else None
            if self._path is None or changed == self._seen:
                return
            told = read_json(self._path).get(MOST_BYTES, DESCRIPTION_BYTES)
        except (OSError, SpatlError):
            return  # there is none yet
        self._most, self._seen = max(int(told), DESCRIPTION_BYTES), changed


def _check_reply(body: bytes) -> None:
    """Raise unless a body is one reply, of the node that sends it, with a few objects.

    Flower takes a message of a client that is no reply for a question, be it to another client.

    Raises:
        Refused: It is something else.
    """
    try:
        request = PushMessagesRequest.FromString(body)
    except DecodeError:
        raise Refused(_FORBIDDEN, "what was sent as a reply is none") from None
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        raise Refused(_FORBIDDEN, "expected one reply")
    told, node = request.messages_list[0].metadata, request.node.node_id
    if not told.reply_to_message_id or told.src_node_id != node:
        raise Refused(_FORBIDDEN, f"node {node} sends a message that is no reply, or another's")
    if (count := sum(1 for _ in _objects(request.message_object_trees))) > _MOST_OBJECTS:
        raise Refused(_TOO_LARGE, f"node {node} sends a reply of {count} objects, at most {_MOST_OBJECTS} are taken")


def _objects(trees: Iterable[ObjectTree]) -> Iterator[ObjectTree]:
    waiting = list(trees)
    while waiting:
        tree = waiting.pop()
        yield tree
        waiting.extend(tree.children)


def _length_of(headers: dict[bytes, bytes]) -> int | None:
    """Return the length of a body as its head says; None where it is sent in chunks."""
    if headers.get(b"transfer-encoding"):
        return None
    try:
        return int(headers.get(b"content-length", b"0"))
    except ValueError:
        raise Refused(_FORBIDDEN) from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return what yields a body once, and then what comes after it."""
    waiting = [body]

    async def again() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return again


async def _answer(send: Send, status: int) -> None:
    """Answer without a body; what was not read of the request ends with the connection."""
    headers = [(b"content-length", b"0")] + ([] if status in (_OK, _UNAVAILABLE) else [(b"connection", b"close")])
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
