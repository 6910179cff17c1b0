"""SuperLink that shows the network its Fleet API alone: `python -m server.deployment.superlink`, with Flower's options.

Flower 1.41 serves three APIs on one port and authenticates only the SuperNodes of one, the Fleet API: whoever reached
the port could register a key of its own or start a run, which is code on every machine (Control). So this one listens
twice. The public socket answers SuperNodes, once it has been opened; the private one, on loopback, answers whoever
knows the token of this process, and Flower's own task processes (Runtime), which have tokens of Flower's.
"""

import argparse
import hmac
import os
import socket
import sys
from logging import INFO

import uvicorn
from flwr.supercore.http_logging import get_uvicorn_log_config
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, _parse_superlink_lifespan_config
from flwr.superlink.main import create_app
from starlette.types import ASGIApp, Receive, Scope, Send

from spatl.deployment.processes import end_with_parent

TOKEN_VARIABLE = "SPATL_SUPERLINK_TOKEN"
TOKEN_HEADER = "x-spatl-token"
OPEN_PATH = "/v1/spatl/open"

_FLEET = "/v1/fleet/"
_TASKS = ("/v1/runtime/", "/health")
_OK, _FORBIDDEN, _NOT_FOUND, _UNAVAILABLE = 200, 403, 404, 503


class Gate:
    """ASGI middleware that lets a request through by the socket it came to, its path and its token.

    Args:
        app: The SuperLink.
        private_port: The port of the private socket; every other one is public.
        token: What opens the Control API on the private socket.
    """

    def __init__(self, app: ASGIApp, *, private_port: int, token: str) -> None:
        self._app = app
        self._private_port = private_port
        self._token = token.encode()
        self._opened = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        status = self._status(scope) if scope["type"] == "http" else _FORBIDDEN
        if status is None:
            await self._app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def _status(self, scope: Scope) -> int | None:
        """Return the status to answer with at once; None for a request to pass on."""
        path, server = scope["path"], scope["server"]
        if server is None or server[1] != self._private_port:
            if not path.startswith(_FLEET):
                return _NOT_FOUND
            return None if self._opened else _UNAVAILABLE  # SuperNodes try again
        if path.startswith(_TASKS):
            return None
        given = dict(scope["headers"]).get(TOKEN_HEADER.encode(), b"")
        if not hmac.compare_digest(given, self._token):
            return _FORBIDDEN
        if path == OPEN_PATH:
            self._opened = True
            return _OK
        return None


def main() -> None:
    """Run the SuperLink until a signal stops it."""
    parser = argparse.ArgumentParser(prog="python -m server.deployment.superlink", add_help=False)
    parser.add_argument("--fleet-host", required=True)
    parser.add_argument("--fleet-port", type=int, required=True)
    options, flowers = parser.parse_known_args()
    token = os.environ.pop(TOKEN_VARIABLE)
    end_with_parent()
    sys.argv = ["flower-superlink", *flowers]  # Flower's parser takes no other
    config = _parse_superlink_lifespan_config()
    app = create_app(config, SuperLinkLifespan)
    app.add_middleware(Gate, private_port=config.port, token=token)
    settings = uvicorn.Config(
        app,
        log_config=get_uvicorn_log_config(INFO),
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
        proxy_headers=False,
    )
    uvicorn.Server(settings).run(
        sockets=[listening(config.host, config.port), listening(options.fleet_host, options.fleet_port)]
    )


def listening(host: str, port: int) -> socket.socket:
    """Return a TCP socket that listens, over IPv6 where the host is one of its addresses."""
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


if __name__ == "__main__":
    main()
