"""Program that Flower starts for each message: it has `clients.device.preloaded` handle it, or handles it itself.

It does so where nobody answers. A program of the standard library alone, started without `site`:
`python -S -E clients/device/handover.py SOCKET [ARGUMENT ...]`.
"""

import json
import os
import signal
import socket
import sys

SIGNED_BUNDLES = "--signed-bundles"
"""Option for `message_process`: somebody whom the device's owner trusts has signed the bundle, so that it is run."""

PARENT_OPTION = "--parent-pid"
"""Option of Flower's programs: the number of the process that starts one."""


def command(path: os.PathLike[str]) -> list[str]:
    """Return the command of this program, for a process that serves at a socket."""
    return [sys.executable, "-S", "-E", __file__, os.fspath(path)]


_WATCH_SECONDS = 2.0


def main() -> None:
    """Hand the message over, wait for the end, and exit with its status; end once the process that started it is gone.

    What Flower does to end with its SuperNode does not reach a fork that waits for an answer of that SuperNode.
    """
    path, arguments = sys.argv[1], sys.argv[2:]
    parent = _parent_in(arguments)
    here = os.getcwd()
    request = {"arguments": ["flwr-clientapp", *arguments], "environment": dict(os.environ), "directory": here}
    connection = socket.socket(socket.AF_UNIX)
    try:
        os.chdir(os.path.dirname(path))  # a socket's path must be short
        connection.connect(os.path.basename(path))
        socket.send_fds(connection, [b" "], [0, 1, 2])
        connection.sendall(json.dumps(request).encode() + b"\n")
    except OSError:
        os.chdir(here)
        os.execv(sys.executable, [sys.executable, "-P", "-m", "clients.device.message_process", *arguments])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, lambda received, frame: connection.send(bytes([received])))
    connection.settimeout(_WATCH_SECONDS)
    status = b""
    while os.getppid() == parent:
        try:
            status = connection.recv(1)
        except TimeoutError:
            continue
        except OSError:
            pass
        break
    sys.exit(status[0] if status else 1)


def _parent_in(arguments: list[str]) -> int:
    """Return the number that whoever started this process gave, for it may be gone by now; else the parent's."""
    given = arguments[arguments.index(PARENT_OPTION) + 1 :][:1] if PARENT_OPTION in arguments else []
    return int(given[0]) if given and given[0].isdecimal() else os.getppid()


if __name__ == "__main__":
    main()
