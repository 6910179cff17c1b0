"""What a tap tells of calls that were cut off: bytes of each connection, apart from those of its answered calls."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.support.taps import Tap

REQUEST = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TIMEOUT_SECONDS = 60.0


@contextlib.contextmanager
def answering(num_connections: int, last: bytes) -> Iterator[int]:
    """A server of so many connections, one after the other: it answers one request and says `last` to the second."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT_SECONDS)

        def serve() -> None:
            for _ in range(num_connections):
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(TIMEOUT_SECONDS)
                    for response in (RESPONSE, last):
                        assert len(connection.recv(len(REQUEST), socket.MSG_WAITALL)) == len(REQUEST)
                        connection.sendall(response)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(TIMEOUT_SECONDS)


def ask_twice(port: int) -> None:
    """Make two calls on one connection and read what comes until the server closes it."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS) as connection:
        connection.sendall(REQUEST)
        assert connection.recv(len(RESPONSE), socket.MSG_WAITALL) == RESPONSE
        connection.sendall(REQUEST)
        while connection.recv(1 << 10):
            pass


@pytest.mark.parametrize("cut", [0, 7, len(RESPONSE)])
def test_a_call_that_was_cut_off_is_told_by_connection(cut):
    answered = cut == len(RESPONSE)
    with answering(2, RESPONSE[:cut]) as port:
        tap = Tap(port)
        for _ in range(2):
            ask_twice(tap.port)
        tap.close()
    assert tap.unanswered() == [(0, 0) if answered else (len(REQUEST), cut)] * 2
    assert [(call.request, call.response) for call in tap.calls()] == [(b"body", b"ok")] * (4 if answered else 2)
