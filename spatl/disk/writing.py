"""Files that a crash leaves whole, old or new: written beside the old one, synced, and put in its place."""

import ctypes
import os
import sys
from pathlib import Path

from spatl.errors import naming

_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
SYNCS_AT_ONCE = hasattr(_LIBC, "syncfs")
"""Whether the system writes many files to the disk at a call (`sync_files_below`); Linux does."""


def write_synced(path: Path, data: bytes, *, synced: bool = True) -> None:
    """Write a file and wait, if `synced`, until the disk has it; the name may still be lost (`sync_names`)."""
    with naming(path), path.open("wb") as file:
        file.write(data)
        file.flush()
        if synced:
            os.fsync(file.fileno())


def sync_files_below(directory: Path) -> None:
    """Wait until the disk has all that was written below a directory, by whatever process, with one call for all.

    Raises:
        OSError: The disk refuses it.
    """
    with naming(directory):
        opened = os.open(directory, os.O_RDONLY)
        try:
            if _LIBC is not None and _LIBC.syncfs(opened):
                raise OSError(number := ctypes.get_errno(), os.strerror(number))
        finally:
            os.close(opened)


def replace_file(path: Path, data: bytes, *, synced: bool = True) -> None:
    """Put a new file in the place of an old one: after a crash (of the process, if not `synced`) one is whole."""
    temporary = path.with_name(path.name + ".tmp")
    write_synced(temporary, data, synced=synced)
    os.replace(temporary, path)
    if synced:
        sync_names(path.parent)


def sync_names(directory: Path) -> None:
    """Write the names in a directory to the disk; Windows does so by itself."""
    if sys.platform == "win32":
        return
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
