"""Sockets of the SuperLink, and the variable of its token: what its process and whoever starts it both use."""

import socket

TOKEN_VARIABLE = "SPATL_SUPERLINK_TOKEN"
"""Environment variable with the token of its private socket."""


def listening(host: str, port: int) -> socket.socket:
    """Return a TCP socket that listens, over IPv6 where the host is one of its addresses."""
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
