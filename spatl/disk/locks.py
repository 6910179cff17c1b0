"""Locks of files: one process at a time, and none once that is gone, however it ended."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spatl.errors import SpatlError, SystemFault, system_fault

if sys.platform != "win32":
    import fcntl

_LOOK_SECONDS = 0.25  # more than whoever looks whether a lock is held (`is_locked`) has it


@contextmanager
def alone_in(lock: Path, *, otherwise: SpatlError, wait: float = 0.0) -> Iterator[None]:
    """Lock a file, which is made if it is not there, against other processes; Windows has no such lock.

    A process that is killed leaves the file, not the lock.

    Args:
        lock: The file.
        otherwise: What is raised if another process is in.
        wait: Seconds to wait for it.

    Raises:
        SpatlError: `otherwise`, or that the file cannot be made; a `SystemFault` where the machine refuses it.
    """
    if sys.platform == "win32":
        yield
        return
    try:
        opened = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        kind = SpatlError if system_fault(error) is None else SystemFault
        raise kind(f"cannot make {lock}: {error.strerror}") from error
    try:
        deadline = time.monotonic() + max(wait, _LOOK_SECONDS)
        while True:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise otherwise from None
                time.sleep(_LOOK_SECONDS / 10)
        try:
            yield
        finally:
            fcntl.flock(opened, fcntl.LOCK_UN)  # closing is not enough where a forked process has it too
    finally:
        os.close(opened)


def stay_alone_in(lock: Path, *, otherwise: SpatlError) -> None:
    """Hold a lock until this process ends, or the program that takes its place. On Windows nothing is locked.

    Raises:
        SpatlError: `otherwise`, or that the file cannot be made.
    """
    if sys.platform == "win32":
        return
    try:
        opened = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise otherwise from None
    except OSError as error:
        raise SpatlError(f"cannot make {lock}: {error.strerror}") from error
    os.set_inheritable(opened, True)


def is_locked(lock: Path) -> bool:
    """Return whether a process has a lock of `alone_in`; nothing is made or written. Windows does not tell."""
    if sys.platform == "win32":
        return False
    try:
        opened = os.open(lock, os.O_RDONLY)
    except OSError:  # nobody has made it, or it is another user's
        return False
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(opened)
    return False
