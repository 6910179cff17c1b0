"""Files that survive a crash: sealed, replaced whole, and written by one process at a time.

A sealed file is one safetensors blob whose header carries numbers and a seal, the SHA-256 of all other bytes: what is
damaged is noticed, and nothing in it is ever executed.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from spatl.errors import DamagedState, SpatlError

if sys.platform != "win32":
    import fcntl

_SEAL_MARK = rb"\"seal\": \""  # as it stands in the header, which is JSON in JSON
_NO_SEAL = b"0" * 64


def seal(tensors: Mapping[str, Tensor], header: Mapping[str, Any], *, version: int) -> bytes:
    """Serialise tensors and a header of JSON values, in a format of some version."""
    content = {"format": version, "seal": _NO_SEAL.decode(), **header}
    # Copies, because safetensors refuses tensors that share memory.
    on_cpu = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    data = bytes(save(on_cpu, metadata={"spatl": json.dumps(content)}))
    place = _seal_place(data)
    return b"".join((data[:place], _seal_of(data, place), data[place + len(_NO_SEAL) :]))


def unseal(data: bytes, *, version: int, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `seal` wrote.

    Args:
        data: The bytes.
        version: The version of the format that the caller reads.
        what: What errors call it.

    Returns:
        The tensors, and the header.

    Raises:
        DamagedState: The bytes are damaged.
        SpatlError: They are of another version.
    """
    sealed = _SEAL_MARK in data  # an older version may have had no seal
    if sealed and not is_whole(data):
        raise DamagedState(f"{what} is damaged: its SHA-256 is not as written")
    try:
        tensors = load(data)
        header: dict[str, Any] = json.loads(_metadata(data)["spatl"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise DamagedState(f"{what} is damaged: {error}") from error
    if not sealed and header.get("format") == version:
        raise DamagedState(f"{what} is damaged: it has no seal")
    if header.get("format") != version:
        raise SpatlError(f"{what} has format {header.get('format')}, this version reads {version}")
    return tensors, header


def is_whole(data: bytes) -> bool:
    """Return whether the bytes are as they were sealed."""
    if _SEAL_MARK not in data:
        return False
    place = _seal_place(data)
    return data[place : place + len(_NO_SEAL)] == _seal_of(data, place)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it; the name may still be lost (`sync_names`)."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Put a new file in the place of an old one: after a crash there is one of the two, whole."""
    temporary = path.with_name(path.name + ".tmp")
    write_synced(temporary, data)
    os.replace(temporary, path)
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


@contextmanager
def alone_in(lock: Path, *, otherwise: SpatlError, wait: float = 0.0) -> Iterator[None]:
    """Lock a file, which is made if it is not there, against other processes; Windows has no such lock.

    A process that is killed leaves the file, not the lock.

    Args:
        lock: The file.
        otherwise: What is raised if another process is in.
        wait: Seconds to wait for it.

    Raises:
        SpatlError: `otherwise`, or that the file cannot be made.
    """
    if sys.platform == "win32":
        yield
        return
    try:
        opened = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise SpatlError(f"cannot make {lock}: {error.strerror}") from error
    try:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise otherwise from None
                time.sleep(0.05)
        try:
            yield
        finally:
            fcntl.flock(opened, fcntl.LOCK_UN)  # closing is not enough where a forked process has it too
    finally:
        os.close(opened)


def _metadata(data: bytes) -> dict[str, str]:
    """Return the `__metadata__` of a safetensors blob: an 8-byte length, then that much JSON."""
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata


def _seal_place(data: bytes) -> int:
    """Return the place at which the seal's 64 hexadecimal digits begin."""
    return data.index(_SEAL_MARK) + len(_SEAL_MARK)


def _seal_of(data: bytes, place: int) -> bytes:
    """Return the SHA-256 of everything but the seal, in hexadecimal digits."""
    digest = hashlib.sha256(memoryview(data)[:place])
    digest.update(memoryview(data)[place + len(_NO_SEAL) :])
    return digest.hexdigest().encode()
