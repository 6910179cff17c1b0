"""Entry of the command line, which a signal ends in one line at any moment, from the first import on.

SIGINT (Ctrl-C), SIGTERM and SIGHUP are told alike: the first one stops the command as tidily as it can, a second one
ends the process at once. Before the command begins, while a module is imported, and after the command is over, the
first one does. A signal that whoever started the process has it ignore, as `nohup` does with SIGHUP, stays ignored.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

STATUS = 130
"""Exit status of a command that a signal ended."""


def _at_once(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"spatl: interrupted\n")
    os._exit(STATUS)


def _tidily(number: int, frame: FrameType | None) -> None:
    if _is_importing(frame):
        _at_once(number, frame)
    _take(_at_once)
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    """Return whether a module is being imported: libraries let go of exceptions that are raised meanwhile."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _take(handler: "signal._HANDLER") -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line as `spatl.console.main.main` does, and return its exit status.

    Where it is called from another thread than the first, signals are whoever's they were.
    """
    alone = threading.current_thread() is threading.main_thread()
    if alone:
        _take(_at_once)
    from spatl.console.main import main as run  # all other imports take place under the handler

    return run(arguments, begin=(lambda: _take(_tidily)) if alone else _nothing)


def _nothing() -> None:
    pass


def script() -> None:
    """Run the command line, and exit."""
    _take(_at_once)
    from spatl.console.streams import guard, lost

    out, _ = guard()
    try:
        status = main()
    except KeyboardInterrupt:  # while another exception was told, or a library let go of it
        _at_once(0, None)
    _take(_at_once)  # what is left to do in this process is nobody's to wait for
    if (line := lost(out)) is not None:
        print(f"spatl: {line}", file=sys.stderr)
        status = status or 2
    sys.exit(status)
