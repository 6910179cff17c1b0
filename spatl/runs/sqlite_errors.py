"""Errors of SQLite as those of a file: what a user can do about them is the same."""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from spatl.errors import DamagedState, StateBusy

_AT_ONCE: Final = 1 << 20
"""Bytes by which such a file grows in one change, more or less."""
_ERRORS: Final = {
    sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_IOERR: errno.EIO, sqlite3.SQLITE_READONLY: errno.EACCES,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES, sqlite3.SQLITE_PERM: errno.EACCES,
}  # fmt: skip


@contextmanager
def naming_errors(path: Path) -> Iterator[None]:
    """Have SQLite's errors be those of a file.

    Args:
        path: The file.

    Raises:
        StateBusy: Another process uses it for too long.
        OSError: The system refuses something.
        DamagedState: It is no such file, or damaged.
    """
    try:
        yield
    except sqlite3.Error as error:
        kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StateBusy(f"another process uses the clients' states in {path}") from error
        if kind in _ERRORS:
            number = _refused(path) if kind == sqlite3.SQLITE_IOERR else _ERRORS[kind]
            raise OSError(number, os.strerror(number), str(path)) from error
        raise DamagedState(f"the clients' states are damaged: {error} ({path})") from error


def _refused(path: Path) -> int:
    """What the system says where a file beside it grows as far: SQLite itself tells a full disk alone."""
    probe = path.with_name(f"{path.name}.probe")
    beside = (path, *(path.with_name(f"{path.name}{ending}") for ending in ("-wal", ".tmp")))
    sizes = [each.stat().st_size for each in beside if each.exists()]
    try:
        with probe.open("wb") as file:
            file.seek(max(sizes, default=0) + _AT_ONCE)
            file.write(bytes(1))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno or errno.EIO
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return errno.EIO
