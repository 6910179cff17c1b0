"""Tensors of the states in one SQLite file: each lies there once, under its SHA-256, while a state names it.

The small ones of a state, of which a network with normalisation layers has a hundred, lie together as one.
"""

import hashlib
import math
import sqlite3
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from spatl.errors import DamagedState
from spatl.sealed_files import StoredTensor, as_tensor, bytes_of

TABLES: Final = """
CREATE TABLE known (digest BLOB PRIMARY KEY, tensor INTEGER NOT NULL, uses INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE tensors (tensor INTEGER PRIMARY KEY, data BLOB NOT NULL);
"""
CACHE_BYTES: Final = 1 << 28
"""Bytes of the tensors that a process remembers, so that the next message of a client need not read them again."""

_SHARED: Final = ("held/", "base", "held_control")  # the same objects for many clients, which nobody writes into
_MOST_OBJECTS: Final = 16
_CONTROLS: Final = ("control", "pending_control")  # written as the second in one round, as the first in the next

_SMALL_BYTES: Final = 1 << 14
_ALIGNED: Final = 16  # so that each begins where its numbers may be read
_TOGETHER: Final = ""
"""Name of the small tensors of a state, one after another, among those of the others."""

Entry = list[Any]
"""Names a tensor in a head, as JSON: dtype, shape, and its digest, `{"all": value}` of one value, or `{"at": place}` of
one that lies among the small ones, from that byte on."""


class StateTensors:
    """The tensors in a file, each with the number of states that have it.

    What is remembered counts whoever else writes: a digest is the tensor's.

    Args:
        file: The file, open; its changes are the caller's.
        num_bytes: Bytes that are remembered.
    """

    def __init__(self, file: sqlite3.Connection, num_bytes: int = CACHE_BYTES) -> None:
        self._file = file
        self._cache = OrderedDict[bytes, Tensor]()
        self._digests: dict[int, tuple[bytes, int]] = {}  # of what is remembered, by its identity; its version then
        self._num_bytes = 0
        self._most_bytes = num_bytes
        self._objects = OrderedDict[int, tuple[Tensor, bytes]]()

    def keep_all(self, tensors: Mapping[str, Tensor | StoredTensor]) -> dict[str, Entry]:
        """Put the tensors of a state into the file, or count one more use of those that are there."""
        entries, together, place = dict[str, Entry](), list[bytes](), 0
        for name, tensor in tensors.items():
            own = as_tensor(tensor).detach().cpu()
            dtype, shape = str(own.dtype).removeprefix("torch."), list(own.shape)
            # One value for all needs no memory here either.
            if own.numel() > 1 and not any(own.stride()) and math.isfinite(value := own.flatten()[0].item()):
                entries[name] = [dtype, shape, {"all": value}]
            elif own.nbytes <= _SMALL_BYTES and not name.startswith(_SHARED):
                entries[name] = [dtype, shape, {"at": place}]
                together.append(bytes(bytes_of(own.contiguous())).ljust(-(-own.nbytes // _ALIGNED) * _ALIGNED, b"\0"))
                place += len(together[-1])
            else:
                entries[name] = self._keep(name, tensor, own.contiguous())
        if together:
            whole = torch.frombuffer(bytearray(b"".join(together)), dtype=torch.uint8) if place else torch.empty(0)
            entries[_TOGETHER] = self._keep(_TOGETHER, whole, whole)
        return entries

    def read_all(self, entries: Mapping[str, Entry]) -> dict[str, Tensor]:
        """The tensors of a state's entries, which nobody may write into.

        Raises:
            DamagedState: One is not there, or another one.
        """
        whole = entries.get(_TOGETHER)
        together = torch.empty(0, dtype=torch.uint8) if whole is None else self._read(whole)
        return {
            name: _taken_out(together, entry) if _is_small(entry) else self._read(entry)
            for name, entry in entries.items()
            if name != _TOGETHER
        }

    def drop_all(self, entries: Mapping[str, Entry]) -> None:
        """Count one use less of the tensors of a state, and take those out of the file of which that was the last."""
        for entry in entries.values():
            self._drop(entry)

    def _keep(self, name: str, tensor: Tensor | StoredTensor, own: Tensor) -> Entry:
        """Put a tensor of some name into the file as what it is in memory, or count one more use of it."""
        dtype, shape = str(own.dtype).removeprefix("torch."), list(own.shape)
        known = self._known(name, tensor)
        digest = _digest(dtype, shape, bytes_of(own)) if known is None else known
        if known is None and name.startswith(_SHARED) and isinstance(tensor, Tensor):
            self._objects[id(tensor)] = tensor, digest
            while len(self._objects) > _MOST_OBJECTS:
                self._objects.popitem(last=False)
        if not self._file.execute("UPDATE known SET uses = uses + 1 WHERE digest = ?", (digest,)).rowcount:
            place = self._file.execute("INSERT INTO tensors (data) VALUES (?)", (bytes_of(own),)).lastrowid
            self._file.execute("INSERT INTO known VALUES (?, ?, 1)", (digest, place))
        self._remember(digest, tensor if name in _CONTROLS and isinstance(tensor, Tensor) else own)
        return [dtype, shape, digest.hex()]

    def _known(self, name: str, tensor: Tensor | StoredTensor) -> bytes | None:
        """The digest of a control variate that is remembered as this object, as it was, or of one that many have."""
        if name not in _CONTROLS:
            return self._objects[id(tensor)][1] if id(tensor) in self._objects else None
        digest, version = self._digests.get(id(tensor), (b"", 0))
        is_as_it_was = digest and self._cache.get(digest) is tensor and tensor._version == version
        return digest if is_as_it_was else None

    def _drop(self, entry: Entry) -> None:
        if not isinstance(entry[2], str):
            return
        digest = bytes.fromhex(entry[2])
        row = self._file.execute("SELECT tensor, uses FROM known WHERE digest = ?", (digest,)).fetchone()
        if row is not None and row[1] > 1:
            self._file.execute("UPDATE known SET uses = uses - 1 WHERE digest = ?", (digest,))
        elif row is not None:
            self._file.execute("DELETE FROM known WHERE digest = ?", (digest,))
            self._file.execute("DELETE FROM tensors WHERE tensor = ?", (row[0],))

    def _read(self, entry: Entry) -> Tensor:
        name, shape, what = entry
        dtype = getattr(torch, name)
        if not isinstance(what, str):
            return torch.tensor(what["all"], dtype=dtype).expand(shape)
        digest = bytes.fromhex(what)
        if digest in self._cache:
            self._cache.move_to_end(digest)
            return self._cache[digest]
        query = "SELECT CAST(data AS BLOB) FROM tensors JOIN known USING (tensor) WHERE digest = ?"
        row = self._file.execute(query, (digest,)).fetchone()
        if row is None or _digest(name, shape, row[0]) != digest:
            raise DamagedState("the client's state is damaged: its SHA-256 is not as written")
        data = bytearray(row[0])
        tensor = torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)
        self._remember(digest, tensor)
        return tensor

    def are_used_as(self, uses: Mapping[str, int]) -> bool:
        """Return whether the file holds the tensors of some digests, hexadecimal, used so many times, and no others."""
        found = self._file.execute("SELECT digest, uses FROM known JOIN tensors USING (tensor)")
        known = {digest.hex(): number for digest, number in found}
        ((number,),) = self._file.execute("SELECT count(*) FROM tensors")
        return known == dict(uses) and number == len(known)

    def _remember(self, digest: bytes, tensor: Tensor) -> None:
        """Keep a tensor in memory, and forget the oldest where they are too many bytes."""
        if digest in self._cache:
            self._cache.move_to_end(digest)
            return
        self._cache[digest] = tensor
        if not tensor.is_inference():  # which has no version
            self._digests[id(tensor)] = digest, tensor._version
        self._num_bytes += tensor.nbytes
        while self._num_bytes > self._most_bytes:
            digest, oldest = self._cache.popitem(last=False)
            if self._digests.get(id(oldest), (b"", 0))[0] == digest:
                del self._digests[id(oldest)]
            self._num_bytes -= oldest.nbytes


def digests_in(entries: Mapping[str, Entry]) -> list[str]:
    """Return the digests, hexadecimal, of the tensors in the file that a state's entries name, each as often."""
    return [what for _, _, what in entries.values() if isinstance(what, str)]


def _is_small(entry: Entry) -> bool:
    return isinstance(entry[2], dict) and "at" in entry[2]


def _taken_out(together: Tensor, entry: Entry) -> Tensor:
    """A small tensor of a state, as it lies among the others."""
    dtype, shape, place = getattr(torch, entry[0]), entry[1], entry[2]["at"]
    own = together[place : place + math.prod(shape) * dtype.itemsize]
    tensor: Tensor = own.view(dtype).reshape(shape) if len(own) else torch.empty(shape, dtype=dtype)
    return tensor


def _digest(dtype: str, shape: list[int], data: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(f"{dtype} {shape} ".encode())
    digest.update(data)
    return digest.digest()
