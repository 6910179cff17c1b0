"""Tests of the proxy that makes networks bad: real sockets on loopback."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.support.proxies import Direction, Proxy

REQUEST = b"POST /v1/thing HTTP/1.1\r\ncontent-length: 4\r\n\r\nbody"
RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nanswer"


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy to a server that gives each request the same response, once it has all of it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(client: socket.socket) -> None:
        held = b""
        with contextlib.suppress(OSError), client:
            while data := client.recv(1 << 16):
                held += data
                if len(held) >= len(REQUEST):
                    held = held[len(REQUEST) :]
                    client.sendall(RESPONSE)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    made = Proxy(listener.getsockname()[1])
    with contextlib.closing(made):
        yield made
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def asked(connection: socket.socket) -> bytes:
    """What comes back for a request; what came before a reset, where there is one."""
    answer = b""
    with contextlib.suppress(ConnectionError):
        connection.sendall(REQUEST)
        while len(answer) < len(RESPONSE) and (data := connection.recv(1 << 16)):
            answer += data
    return answer


def connected(proxy: Proxy, *, patience: float = 60.0) -> socket.socket:
    """A connection that gives up after a while."""
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=patience)


def test_fine_and_slow_networks_pass_all_bytes(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        assert asked(connection) == RESPONSE
        proxy.turn("slow", bytes_per_second=1e5, delay_seconds=0.01)
        assert asked(connection) == RESPONSE
    assert proxy.paths() == ["/v1/thing"] * 2


def test_where_connections_are_refused_old_ones_end_and_new_ones_are_closed_until_it_is_over(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        assert asked(connection) == RESPONSE
        proxy.turn("refused")
        assert asked(connection) == b""
    with connected(proxy) as connection:
        assert asked(connection) == b""
    proxy.turn("fine")
    with connected(proxy) as connection:
        assert asked(connection) == RESPONSE


def test_what_is_sent_into_a_black_hole_is_never_answered_nor_told_also_not_afterwards(proxy: Proxy) -> None:
    with connected(proxy) as old:
        assert asked(old) == RESPONSE
        proxy.turn("swallowed")
        old.settimeout(0.3)
        with connected(proxy, patience=0.3) as new:
            for each in (old, new):
                with pytest.raises(TimeoutError):
                    asked(each)
            proxy.turn("fine")
            for each in (old, new):
                with pytest.raises(TimeoutError):
                    asked(each)
    with connected(proxy) as connection:
        assert asked(connection) == RESPONSE


@pytest.mark.parametrize(("direction", "after", "comes"), [("up", 9, b""), ("down", 0, b""), ("down", 9, RESPONSE[:9])])
def test_cut_resets_the_next_call_of_its_path_and_no_other(
    proxy: Proxy, direction: Direction, after: int, comes: bytes
) -> None:
    never, once = proxy.cut("/v1/other", direction), proxy.cut("/v1/thing", direction, after=after)
    with connected(proxy) as connection:
        assert comes.startswith(asked(connection))  # a reset may overtake what came before it
    assert once.wait(1.0)
    assert not never.is_set()
    with connected(proxy) as connection:
        assert asked(connection) == RESPONSE
