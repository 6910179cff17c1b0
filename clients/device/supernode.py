"""Flower's SuperNode, but one that does not give up: `python -m clients.device.supernode`, with Flower's options.

Flower 1.41's tries a call again when a connection breaks, but not when its TLS handshake does (cut by a proxy without
a server, or timed out by a network that swallows packets), nor after an HTTP error of a proxy: then its loop ends, and
its process stays, for a thread of its web server still runs. A heartbeat that raises ends the thread of the heartbeats,
and the server counts the node as gone though it goes on asking. Here such a call has failed as one whose connection
broke, which Flower tries again for ever; what Flower itself answered stays as it is; and where its loop ends, the
process does. After a message it asks for the next more often than Flower's does (`spatl.deployment.pauses`).
"""

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import httpx
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse, DeactivateNodeRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.supercore import log
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.retry import exponential
from flwr.supernode.fleet_http_client import FleetHttpClient

from clients.device.refusals import gist, is_final, refusal
from clients.device.supervisor import PULSE_VARIABLE, PULSES, SESSION_VARIABLE
from spatl.deployment.pauses import Pauses
from spatl.deployment.processes import free_port
from spatl.deployment.superexec import read_secret

CONNECT_SECONDS = 10.0
"""How long a connection, or its TLS handshake, is waited for."""
_ANSWER_SECONDS = 15.0
_SLOWEST_BYTES_PER_SECOND = 5000.0  # of what the system still has to send when the wait for an answer begins
RETRY_SECONDS = 6
"""The longest time from a call that did not get through to the next."""
_BEAT_AGAIN_SECONDS = 4
_START_API = "_start_supernode_http_api"  # Flower's, which serves work to the SuperExec
_PIECE_BYTES = 1 << 16
_HEARTBEAT = "heartbeat"  # as its path ends
_PAUSES_GROW = 1.5
_OF_EACH_TRY = ("Connection attempt failed", "Connection successful after")

_connection: Any = import_module("flwr.supernode.fleet_http_connection")
http_retry: Any = import_module("flwr.supercore.retry.http_retry")


class PatientFleetClient(FleetHttpClient):
    """Client of the Fleet API whose calls fail as broken connections do, for whatever reason that may pass.

    Each step of a call touches the file `asking`, or `heartbeat`, in the directory that an environment variable names,
    so that the supervisor sees that this process still asks. The node's id stays in a file that another one names: for
    the server a SuperNode that was killed is still connected, and it lets no other one with its key in for up to a
    minute; its successor ends that session first.

    Args:
        base_url: The server's.
        named: As of Flower's client.
    """

    def __init__(self, base_url: str, **named: Any) -> None:
        super().__init__(base_url, **named)
        self._client.event_hooks = {"request": [self._watch_request], "response": [self._watch_response]}
        self._address = base_url.rpartition("//")[2]
        self._pulse, self._session = (
            Path(path) if (path := os.environ.get(name)) else None for name in (PULSE_VARIABLE, SESSION_VARIABLE)
        )
        self._said: str | None = None

    def ActivateNode(self, request: ActivateNodeRequest) -> ActivateNodeResponse:  # noqa: N802  (as Flower names it)
        """Begin a session in the place of the last one; every refusal may pass."""
        try:
            end_session(self, self._session)
            response = super().ActivateNode(request)
        except httpx.HTTPStatusError as error:
            raise self._not_reached(error) from error
        if self._session is not None:
            with contextlib.suppress(OSError):  # of a full disk: the next session begins a minute later
                self._session.write_text(f"{response.node_id}\n")
        return response

    def SendNodeHeartbeat(self, request: SendNodeHeartbeatRequest) -> SendNodeHeartbeatResponse:  # noqa: N802
        """Send a heartbeat; a refusal of Flower's ends this process, for its thread could tell nobody."""
        try:
            response = super().SendNodeHeartbeat(request)
        except httpx.HTTPStatusError as error:
            self._say(refusal(error, self._address).reason)
            end(1)
        if not response.success:
            self._say(f"{self._address} does not know this session")
            end(1)
        return response

    def _unary_unary(self, **named: Any) -> Any:
        """Make a call.

        Raises:
            httpx.HTTPStatusError: Flower has answered so, or will not take a request of this size or form.
            httpx.RemoteProtocolError: It did not get through.
        """
        if named.get("timeout") is None:
            answer = _ANSWER_SECONDS + named["request"].ByteSize() / _SLOWEST_BYTES_PER_SECOND
            named["timeout"] = httpx.Timeout(_ANSWER_SECONDS, connect=CONNECT_SECONDS, read=answer)
        try:
            response = super()._unary_unary(**named)
        except (httpx.HTTPError, OSError, ValueError) as error:
            if is_final(error):
                raise
            raise self._not_reached(error, aloud=not named["path"].endswith(_HEARTBEAT)) from error
        if self._said is not None and not named["path"].endswith(_HEARTBEAT):
            self._said = None
            log(logging.INFO, "%s answers again", self._address)
        return response

    def _watch_request(self, request: httpx.Request) -> None:
        assert isinstance(request.stream, httpx.SyncByteStream)
        touch = self._touch_of(request)
        touch()
        request.stream = _Watched(request.stream, touch)

    def _watch_response(self, response: httpx.Response) -> None:
        """Watch a response being read.

        Raises:
            ValueError: It is nothing that a SuperLink sends, though it says that all is well: a captive portal does so.
        """
        touch = self._touch_of(response.request)
        touch()
        if response.is_success and response.headers.get("content-type", "").partition(";")[0] != PROTOBUF_MEDIA_TYPE:
            raise ValueError(f"HTTP {response.status_code} with {response.headers.get('content-type', 'no type')}")
        assert isinstance(response.stream, httpx.SyncByteStream)
        response.stream = _Watched(response.stream, touch)

    def _touch_of(self, request: httpx.Request) -> Callable[[], None]:
        asking, heartbeat = PULSES
        name = heartbeat if request.url.path.endswith(_HEARTBEAT) else asking

        def touch() -> None:
            if self._pulse is not None:
                with contextlib.suppress(OSError):
                    (self._pulse / name).touch()

        return touch

    def _not_reached(self, error: Exception, *, aloud: bool = True) -> httpx.TransportError:
        """Return what Flower tries again after; say why where that is new, of a call that work waits for."""
        if aloud:
            self._say(f"{refusal(error, self._address).reason}; trying again")
        return httpx.RemoteProtocolError("the call did not get through")

    def _say(self, reason: str) -> None:
        if gist(reason) != self._said:
            self._said = gist(reason)
            log(logging.WARNING, "%s", reason)


class _Watched(httpx.SyncByteStream):
    """Stream in pieces, each of which is told of."""

    def __init__(self, stream: httpx.SyncByteStream, tell: Callable[[], None]) -> None:
        self._stream = stream
        self._tell = tell

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            for start in range(0, len(chunk), _PIECE_BYTES):
                yield chunk[start : start + _PIECE_BYTES]
                self._tell()

    def close(self) -> None:
        self._stream.close()


class _Heartbeats(HeartbeatSender):
    """Heartbeats that come soon after a network has come back."""

    def __init__(self, heartbeat_fn: Callable[[], bool]) -> None:
        super().__init__(heartbeat_fn)
        self._retry_invoker.wait_gen_factory = lambda: exponential(max_delay=_BEAT_AGAIN_SECONDS)


def end_session(client: FleetHttpClient, session: Path | None) -> None:
    """End the session that a SuperNode of this client has left, if there is one.

    Args:
        client: Signs with this client's key.
        session: The file that the SuperNode left its node's id in.

    Raises:
        httpx.HTTPError: The server was not reached.
    """
    try:
        node_id = 0 if session is None else int(session.read_text())
    except (OSError, ValueError):
        return
    if node_id:
        with contextlib.suppress(httpx.HTTPStatusError):  # it is over, or of another start of the server
            client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))


def end(status: int) -> NoReturn:
    """End of this process; its web server's thread would keep it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def make_patient() -> None:
    """Have Flower's SuperNode use what is in this module."""
    _connection.FleetHttpClient = PatientFleetClient
    _connection.HeartbeatSender = _Heartbeats
    loop: Any = import_module("flwr.supernode.start_client_internal")
    loop.time = SimpleNamespace(sleep=Pauses(_PAUSES_GROW).sleep)
    http_retry.MAX_RETRY_DELAY = RETRY_SECONDS
    # Each try is a line of Flower's; here each new reason is.
    logging.getLogger("flwr").addFilter(lambda record: not str(record.msg).startswith(_OF_EACH_TRY))


def ask_for_secret() -> None:
    """Have Flower's SuperNode give work to nobody but who knows the secret, be it a SuperExec that it starts itself."""
    program: Any = import_module("flwr.supernode.cli.flower_supernode")
    start_api, secret = getattr(program, _START_API), read_secret()

    def start_with_secret(config: Any, state_factory: Any) -> Any:
        return start_api(replace(config, superexec_auth_secret=secret), state_factory)

    setattr(program, _START_API, start_with_secret)


def main() -> None:
    """Run a SuperNode, on a port of loopback that is free now, until it ends or a signal stops it."""
    make_patient()
    ask_for_secret()
    sys.argv = ["flower-supernode", *sys.argv[1:], "--port", str(free_port())]
    status = 1
    try:
        import_module("flwr.supernode.cli.flower_supernode").flower_supernode()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        end(status)


if __name__ == "__main__":
    main()
