"""Proxies: bad networks on loopback, between a device and its server, one TCP proxy for each device."""

import contextlib
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["up", "down"]
Weather = Literal["fine", "refused", "swallowed", "slow"]
"""State of a network: all passes; connections are accepted and closed; whatever is sent vanishes, and connections that
were open then never work again, as behind a router that forgot them; a thin line."""

_CHUNK_BYTES = 1 << 16
_BACKLOG = 64
_SLOW_BYTES = 2048
_REQUEST = re.compile(rb"(?:POST|GET) (\S+) HTTP/1\.1\r\n")
_RESET = struct.pack("ii", 1, 0)  # a closed socket with this option sends RST


@dataclass
class _Cut:
    """Order to reset the connection of the next call of a path, once so many bytes of it have passed."""

    path: str | None
    direction: Direction
    after: int
    done: threading.Event = field(default_factory=threading.Event)


class _Connection:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.path = ""
        self.passed: dict[Direction, int] = {"up": 0, "down": 0}
        self.lost = False

    def reset(self) -> None:
        for each in (self.client, self.server):
            with contextlib.suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            # A close alone would wait for the other thread's recv.
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                each.close()


class Proxy:
    """TCP proxy on loopback to one port of this machine, whose network can be made bad while it runs.

    Args:
        target_port: Where connections go.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._weather: Weather = "fine"
        self._bytes_per_second, self._delay_seconds = 20_000.0, 0.3
        self._connections: list[_Connection] = []
        self._cuts: list[_Cut] = []
        self._swallowed: list[socket.socket] = []
        self._closed = False
        self._paths: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Close all."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                connection.reset()
            for each in self._swallowed:
                each.close()

    def turn(self, weather: Weather, *, bytes_per_second: float = 20_000.0, delay_seconds: float = 0.3) -> None:
        """Make the network this from now on; the two numbers are those of a slow one."""
        with self._lock:
            self._weather = weather
            self._bytes_per_second, self._delay_seconds = bytes_per_second, delay_seconds
            if weather == "refused":
                for connection in self._connections:
                    connection.reset()
                self._connections = []
            elif weather == "swallowed":
                for connection in self._connections:
                    connection.lost = True

    def cut(self, path: str | None, direction: Direction, *, after: int = 0) -> threading.Event:
        """Reset the connection of the next call in mid-message; only without TLS can the proxy see a path.

        Args:
            path: Of the call, e.g. `/v1/fleet/pull-messages`; None for any bytes at all.
            direction: Whether the request is cut, or the response: then the server has done what it was asked.
            after: Bytes of the call that still pass in this direction.

        Returns:
            An event that is set when it has happened.
        """
        order = _Cut(path, direction, after)
        with self._lock:
            self._cuts.append(order)
        return order.done

    def forget(self) -> None:
        """Take back all cuts that have not happened."""
        with self._lock:
            self._cuts = []

    def paths(self) -> list[str]:
        """Paths of the calls so far, where there was no TLS."""
        with self._lock:
            return list(self._paths)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            with self._lock:
                weather = self._weather
            if weather == "swallowed":
                with self._lock:
                    self._swallowed.append(client)
                continue
            if weather == "refused":
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:
                client.close()
                continue
            connection = _Connection(client, server)
            with self._lock:
                self._connections.append(connection)
            for direction in ("up", "down"):
                threading.Thread(target=self._pump, args=(connection, direction), daemon=True).start()

    def _pump(self, connection: _Connection, direction: Direction) -> None:
        """Pass bytes on until the source ends, or the weather or a cut stops it."""
        up = direction == "up"
        source, target = (connection.client, connection.server) if up else (connection.server, connection.client)
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                with self._lock:
                    self._note(connection, direction, data)
                    order = self._order(connection, direction, len(data))
                if connection.lost:
                    continue
                if order is not None:
                    passing = max(0, order.after - connection.passed[direction])
                    target.sendall(data[:passing])
                    connection.reset()
                    order.done.set()
                    return
                connection.passed[direction] += len(data)
                self._send(target, data)
        if connection.lost:
            return  # whoever waits at the other end is not told
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _note(self, connection: _Connection, direction: Direction, data: bytes) -> None:
        found = _REQUEST.match(data) if direction == "up" else None
        if found is not None:
            connection.path = found[1].decode("ascii", "replace")
            connection.passed = {"up": 0, "down": 0}
            self._paths.append(connection.path)

    def _order(self, connection: _Connection, direction: Direction, length: int) -> _Cut | None:
        """The order that this data falls under, taken off the list."""
        for order in self._cuts:
            if order.direction != direction or (order.path is not None and order.path != connection.path):
                continue
            if connection.passed[direction] + length > order.after:
                self._cuts.remove(order)
                return order
        return None

    def _send(self, target: socket.socket, data: bytes) -> None:
        with self._lock:
            slow, rate, delay = self._weather == "slow", self._bytes_per_second, self._delay_seconds
        if not slow:
            target.sendall(data)
            return
        time.sleep(delay)
        for start in range(0, len(data), _SLOW_BYTES):
            piece = data[start : start + _SLOW_BYTES]
            target.sendall(piece)
            time.sleep(len(piece) / rate)
