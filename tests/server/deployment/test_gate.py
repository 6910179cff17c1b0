"""The gate and its connections on real sockets: who sends too much, too slowly, or nothing, and what that costs."""

import contextlib
import json
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes, sign_message
from starlette.types import Receive, Scope, Send

from server.deployment.connections import Doorkeeper, hurried_protocol
from server.deployment.gate import DESCRIPTION_BYTES, OPEN_PATH, TOKEN_HEADER, Gate, MessageLengths
from server.deployment.sockets import listening
from spatl.json_files import write_json

TOKEN = "secret"
MOST = 8 << 20
OBJECT, REPLY, BEAT, OTHER = (
    f"/v1/fleet/{path}" for path in ("push-object", "push-messages", "send-node-heartbeat", "other")
)


@dataclass
class Seen:
    """App behind the gate: what came through, by path and length."""

    passed: list[tuple[str, int]] = field(default_factory=list)
    answer: bytes = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        self.passed.append((scope["path"], len(body)))
        length = str(len(self.answer)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": self.answer})


@dataclass
class Standing:
    """A gate that listens, and a client's key that it knows."""

    port: int
    private_port: int
    app: Seen
    doorkeeper: Doorkeeper
    key: ec.EllipticCurvePrivateKey

    def signed(self, key: ec.EllipticCurvePrivateKey | None = None) -> dict[str, str]:
        """Headers of a client, as Flower's SuperNode makes them."""
        own, told = key or self.key, now().isoformat()
        return {
            FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public_key_to_bytes(own.public_key())).decode(),
            TIMESTAMP_HEADER: told,
            FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(own, told.encode())).decode(),
        }

    def post(self, path: str, content: bytes | Iterator[bytes], **headers: str) -> int:
        """The status of a request to the public port."""
        return httpx.post(f"http://127.0.0.1:{self.port}{path}", content=content, headers=headers).status_code

    def raw(self, text: str) -> socket.socket:
        """A connection to the public port over which something was sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(text.encode())
        return connection


@pytest.fixture
def standing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standing]:
    """A gate in uvicorn, as the SuperLink has it but for shorter waits, that has been opened for one key."""
    monkeypatch.setattr("server.deployment.connections.LEAST_BYTES_PER_SECOND", 1 << 20)
    registration = tmp_path / "registration.json"
    registration.write_text(json.dumps({"absent": {}, "most_bytes": MOST}))
    sockets = [listening("127.0.0.1", 0) for _ in range(2)]
    private, public = (each.getsockname()[1] for each in sockets)
    app, doorkeeper = Seen(), Doorkeeper(public, most=16, head_seconds=0.5, grace_seconds=0.5)
    gate = Gate(app, private_port=private, token=TOKEN, registration=registration, grace_seconds=0.5)
    settings = uvicorn.Config(gate, http=hurried_protocol(doorkeeper), ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, args=(sockets,))
    thread.start()
    try:
        key, public_key = generate_key_pairs()
        opened = httpx.post(
            f"http://127.0.0.1:{private}{OPEN_PATH}", content=b64encode(public_key_to_bytes(public_key)),
            headers={TOKEN_HEADER: TOKEN},
        )  # fmt: skip
        assert opened.status_code == 200
        yield Standing(public, private, app, doorkeeper, key)
    finally:
        server.should_exit = True
        thread.join()
        for each in sockets:
            each.close()


def answer_of(connection: socket.socket) -> bytes:
    """All that comes over a connection until its other end closes it; that it does."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(1 << 16):
            parts.append(data)
    return b"".join(parts)


def await_that(holds: Callable[[], bool]) -> None:
    """Wait until the gate's thread is so far."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def head(path: str, length: int, **headers: str) -> str:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\nhost: here\r\ncontent-length: {length}\r\n{lines}\r\n"


def test_a_body_that_is_longer_than_any_message_is_refused_before_a_byte_of_it_is_sent(standing):
    for path, length in ((OBJECT, MOST + 1), (OBJECT, 10**15), (REPLY, 1 << 20), (BEAT, 1 << 20), (OTHER, 10**9)):
        for headers in ({}, standing.signed()):
            with standing.raw(head(path, length, **headers)) as connection:
                assert b" 413 " in answer_of(connection)
    assert standing.app.passed == []


@pytest.mark.slow
def test_a_body_without_a_length_is_cut_at_the_limit(standing):
    sent = []

    def chunks(number: int) -> Iterator[bytes]:
        for _ in range(number):
            sent.append(1 << 20)
            yield bytes(1 << 20)

    assert standing.post(OBJECT, chunks(6), **standing.signed()) == 200
    assert standing.app.passed == [(OBJECT, 6 << 20)]
    sent.clear()
    with contextlib.suppress(httpx.TransportError):  # the connection may be gone before the answer is read
        assert standing.post(OBJECT, chunks(10_000), **standing.signed()) == 413
    assert len(sent) < 100
    with contextlib.suppress(httpx.TransportError):
        assert standing.post(BEAT, chunks(10_000)) == 413
    assert standing.app.passed == [(OBJECT, 6 << 20)]


@pytest.mark.slow
def test_who_has_not_signed_may_send_a_few_kilobytes(standing):
    stranger, _ = generate_key_pairs()
    for headers in ({}, standing.signed(stranger), standing.signed() | {TIMESTAMP_HEADER: "2020-01-01T00:00:00+00:00"}):
        with standing.raw(head(OBJECT, 1 << 20, **headers)) as connection:
            assert b" 401 " in answer_of(connection)
        assert standing.post(OBJECT, bytes(1000), **headers) == 200  # and Flower looks at the signature
    assert standing.post(OBJECT, bytes(1 << 20), **standing.signed()) == 200
    assert [length for _, length in standing.app.passed] == [1000] * 3 + [1 << 20]


@pytest.mark.slow
def test_a_client_has_two_messages_read_at_once(standing):
    """As many bytes of a third are refused until one is over; the others are not cut for it."""
    held = [standing.raw(head(OBJECT, MOST, **standing.signed()) + "x") for _ in range(2)]
    await_that(lambda: len(standing.doorkeeper.open) == 2)
    assert standing.post(OBJECT, bytes(MOST), **standing.signed()) == 429
    for connection in held:
        assert b" 408 " in answer_of(connection)  # they were too slow
        connection.close()
    assert standing.post(OBJECT, bytes(MOST), **standing.signed()) == 200


def test_until_the_registration_is_over_a_description_of_data_is_the_longest_message(tmp_path):
    registration = tmp_path / "registration.json"
    lengths = MessageLengths(registration)
    assert lengths.most(10**12) == DESCRIPTION_BYTES
    registration.write_text('{"absent": {}}')
    assert lengths.most(10**12) == DESCRIPTION_BYTES
    write_json(registration, {"absent": {}, "most_bytes": 10**9})
    assert lengths.most(1000) == 10**9 or lengths.most(DESCRIPTION_BYTES + 1) == 10**9


def test_a_body_that_stands_still_or_trickles_ends(standing):
    with standing.raw(head(OBJECT, 1000)) as connection:  # nothing of it comes
        assert b" 408 " in answer_of(connection)
    with standing.raw(head(OBJECT, 1000) + "a") as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):
                time.sleep(0.05)
                connection.sendall(b"b")
        assert b" 408 " in answer_of(connection)
    assert standing.app.passed == []


def test_a_connection_that_asks_for_nothing_or_never_comes_to_the_end_of_its_head_ends(standing):
    silent = standing.raw("")
    slow = standing.raw(f"POST {BEAT} HTTP/1.1\r\n")
    after = standing.raw(head(BEAT, 0))
    assert b" 200 " in after.recv(1 << 16)
    after.sendall(b"POST ")
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(100):
            time.sleep(0.05)
            slow.sendall(b"x: y\r\n")
    for connection in (silent, slow, after):
        assert answer_of(connection) == b""
        connection.close()
    assert standing.doorkeeper.open == {}


def test_an_endless_head_is_refused(standing):
    with standing.raw(f"POST {BEAT} HTTP/1.1\r\n") as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(200):
                connection.sendall(b"x: " + b"y" * 1000 + b"\r\n")
        assert b" 200 " not in answer_of(connection)
    assert standing.app.passed == []


def test_an_answer_that_nobody_reads_ends_its_connection(standing):
    standing.app.answer = bytes(64 << 20)
    with standing.raw(head(BEAT, 0)) as connection:
        time.sleep(2)
        read = len(answer_of(connection))
    assert read < len(standing.app.answer)
    standing.app.answer = bytes(4 << 20)  # more than a socket's buffers hold, and read in one go by a busy machine too
    assert standing.post(BEAT, b"") == 200  # and one that is read comes whole


def test_one_connection_too_many_of_an_address_ends_at_once_and_the_private_port_is_not_counted(standing):
    held = [standing.raw("") for _ in range(8)]
    await_that(lambda: len(standing.doorkeeper.open) == 8)
    with contextlib.suppress(ConnectionResetError, BrokenPipeError), standing.raw(head(BEAT, 0)) as connection:
        assert answer_of(connection) == b""
    url = f"http://127.0.0.1:{standing.private_port}/v1/runtime/pull-task-input"
    assert httpx.post(url, content=b"").status_code == 200
    for connection in held:
        connection.close()
    await_that(lambda: not standing.doorkeeper.open)
    assert standing.post(BEAT, b"") == 200


def test_one_address_leaves_half_of_the_connections_to_others():
    keeper = Doorkeeper(1, most=8)
    for number in range(4):
        assert keeper.admits("10.0.0.1")
        keeper.open[number] = "10.0.0.1"
    assert not keeper.admits("10.0.0.1")
    for number in range(4, 8):
        assert keeper.admits(f"10.0.0.{number}")
        keeper.open[number] = f"10.0.0.{number}"
    assert not keeper.admits("10.0.1.1")  # all are taken
    del keeper.open[0]
    assert keeper.admits("10.0.0.1")


def reply(node: int = 7, *, source: int = 7, answers: str = "a question", objects: int = 4, replies: int = 1) -> bytes:
    """The body of a node's reply."""
    tree = ObjectTree(object_id="0", children=[ObjectTree(object_id=str(each)) for each in range(1, objects)])
    told = Metadata(run_id=1, message_id="m", src_node_id=source, dst_node_id=1, reply_to_message_id=answers)
    return PushMessagesRequest(
        node=Node(node_id=node), messages_list=[Message(metadata=told)] * replies, message_object_trees=[tree]
    ).SerializeToString()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (reply(), 200),
        (reply(objects=8), 200),
        (reply(objects=9), 413),
        (reply(objects=2000), 413),
        (reply(answers=""), 403),  # a question of its own, to another client in the server's name, for one
        (reply(source=1), 403),
        (reply(source=8), 403),
        (reply(replies=2), 403),
        (reply(replies=0), 403),
        (b"", 403),
        (b"\xff" * 100, 403),
    ],
    ids=["a reply", "of eight objects", "of nine", "of 2000", "a question", "of the server", "of another client", "two",
         "none", "nothing", "noise"],
)  # fmt: skip
def test_what_is_no_reply_of_the_node_that_sends_it_is_refused(standing, body, status):
    assert standing.post(REPLY, body, **standing.signed()) == status
    assert bool(standing.app.passed) == (status == 200)
