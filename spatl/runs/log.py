"""Log of a run: one JSON object per line, for programs that watch many runs.

Warnings and errors of every package are in it, Flower's too; what is worth knowing and no warning goes to `EVENTS`,
which is silent where no run is logged. Facts that a program may want stand beside the message: `round`, `client`.
"""

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spatl.errors import printable
from spatl.json_files import to_json

EVENTS = logging.getLogger("spatl.events")
EVENTS.setLevel(logging.INFO)

EVENTS.propagate = False  # the terminal has its own progress
EVENTS.addHandler(logging.NullHandler())

_FACTS = ("round", "client")


class PrintableRecord(logging.LogRecord):
    """Record of a log whose text moves no terminal's cursor, whoever wrote what it tells of."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            self.exc_text = printable("".join(traceback.format_exception(*self.exc_info))).rstrip()

    def getMessage(self) -> str:  # noqa: N802  (the library's name)
        """Return the message with its arguments."""
        return printable(super().getMessage())


def make_logs_printable() -> None:
    """Have every record of this process be a `PrintableRecord`, whoever logs it and wherever it is shown."""
    logging.setLogRecordFactory(PrintableRecord)


class JsonFormatter(logging.Formatter):
    """Makes a record one JSON object: `time` (ISO 8601, UTC), `level`, `logger`, `message`, and facts it carries."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        content: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        content.update((name, getattr(record, name)) for name in _FACTS if hasattr(record, name))
        if found := traceback_in(record):
            content["traceback"] = found
        return to_json(content, ensure_ascii=False)


def traceback_in(record: logging.LogRecord) -> str:
    """Return the traceback that a record carries, or that a client sent (`traceback`); empty for none."""
    if record.exc_info:
        return printable("".join(traceback.format_exception(*record.exc_info)))
    return printable(str(getattr(record, "traceback", "")))


class TextFormatter(logging.Formatter):
    """Makes a record one line, and, if wanted, the traceback that came with it.

    Args:
        tracebacks: Whether tracebacks follow.
    """

    def __init__(self, *, tracebacks: bool) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or lines."""
        line = f"{record.levelname} {record.name}: {record.getMessage()}"
        found = traceback_in(record) if self._tracebacks else ""
        return f"{line}\n{found}".rstrip()


class _LogFile(logging.FileHandler):
    """Handler that writes lines to a file while the disk takes them: a disk that is full ends no run by its log."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (the library's name)
        """Let a line go that the system refused; any other error is told as the library does."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Append the events, and every warning of this process, to a file of JSON lines."""
    _end_line(path)
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(JsonFormatter())
    handler.setLevel(logging.INFO)
    warnings = _LogFile(path, encoding="utf-8")
    warnings.setFormatter(JsonFormatter())
    warnings.setLevel(logging.WARNING)
    root = logging.getLogger()
    EVENTS.addHandler(handler)
    root.addHandler(warnings)
    try:
        yield
    finally:
        EVENTS.removeHandler(handler)
        root.removeHandler(warnings)
        handler.close()
        warnings.close()


def _end_line(path: Path) -> None:
    """End the last line of a file, where it was torn, so that the next one is whole."""
    with suppress(OSError), path.open("r+b") as file:
        if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
            file.write(b"\n")
