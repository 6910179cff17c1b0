"""Standard output and error that may close or fill up while a command works.

Whoever reads what a command prints may have enough of it (`| head -1`), a terminal may go, a file that output goes to
may fill its disk. None of that is to cost a round or a report: what cannot be printed is dropped, and the command goes
on.
"""

import errno
import os
import sys
from typing import Any, TextIO, cast


class Steadfast:
    """Text stream that drops what cannot be written any more.

    Args:
        stream: The stream.

    Attributes:
        error: Why something was dropped; None as long as nothing was.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text, or drop it; return its length."""
        if self.error is None:
            try:
                self._stream.write(text)
            except OSError as error:
                self._give_up(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write texts, or drop them."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream, unless it has failed."""
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Drop everything from now on; what the stream still holds goes nowhere."""
        self.error = error
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):  # it has no descriptor, or none is left
            pass

    def __getattr__(self, name: str) -> Any:
        """Return what else the stream has."""
        return getattr(self._stream, name)


def guard() -> tuple[Steadfast, Steadfast]:
    """Put such streams in the places of this process's standard output and error, and return them."""
    out, error = Steadfast(sys.stdout), Steadfast(sys.stderr)
    sys.stdout, sys.stderr = cast("TextIO", out), cast("TextIO", error)
    return out, error


def lost(out: Steadfast) -> str | None:
    """Return what to say of a standard output that is not whole; None where it is, or where its reader had enough."""
    out.flush()
    if out.error is None or out.error.errno in (errno.EPIPE, errno.EIO, errno.EBADF):
        return None
    return f"standard output: {os.strerror(out.error.errno or 0)}; what was printed there is not whole"
