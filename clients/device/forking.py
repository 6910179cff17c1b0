"""Forks of this process, one for each process that asks: it takes the place of that one, with all that is loaded here.

`clients.device.handover` hands over its arguments, environment, directory and standard streams, on a socket in a
directory that no other user can enter. A process that serves has one thread and has not touched a GPU; the forks share
its memory.
"""

import atexit
import contextlib
import gc
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WATCH_SECONDS = 2.0
_CHUNK_BYTES = 1 << 16
_NUM_STREAMS = 3


def serve(path: Path, handle: Callable[[], None], *, parent: int) -> None:
    """Fork for every process that asks, and call `handle` there; return in the fork, and when the parent is gone.

    Args:
        path: A socket to make, in a directory that no other user can enter.
        handle: What a fork does, with the arguments, environment, directory and standard streams of the one that
            asked; its exit status is the other's.
        parent: The process that started this one.

    Raises:
        SystemExit: There can be no such socket; the message says why.
    """
    listener = _listen(path)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent ends, so this one does
    gc.collect()
    gc.freeze()  # what is there now stays shared
    while os.getppid() == parent:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            listener.close()
            _take_over(connection, handle)
            return
        connection.close()


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        os.chdir(path.parent)  # a socket's path must be short
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path.name)
        listener.bind(path.name)
    except OSError as error:
        raise SystemExit(f"cannot listen at {path}: {error.strerror}; messages are handled without") from None
    listener.listen()
    listener.settimeout(_WATCH_SECONDS)
    return listener


def _take_over(connection: socket.socket, handle: Callable[[], None]) -> None:
    """Take the place of the process that asked, and send it the exit status at the end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    request, streams = _receive(connection)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    sys.argv = request["arguments"]
    threading.Thread(target=_forward_signals, args=(connection,), name="spatl-handover", daemon=True).start()
    status = 1
    atexit.register(lambda: connection.sendall(bytes([status])))  # registered first, so it is the last
    try:
        handle()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    data, streams, _, _ = socket.recv_fds(connection, _CHUNK_BYTES, _NUM_STREAMS)
    while not data.endswith(b"\n"):
        if not (more := connection.recv(_CHUNK_BYTES)):
            raise ConnectionError("the process that asked has gone")
        data += more
    return json.loads(data), list(streams)


def _forward_signals(connection: socket.socket) -> None:
    """Pass the signals of the process that asked on to this one; end with it if it was killed."""
    while number := connection.recv(1):
        os.kill(os.getpid(), number[0])
    os.kill(os.getpid(), signal.SIGKILL)
