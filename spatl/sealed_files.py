"""Tensors in files that survive a crash, sealed.

A sealed file is one safetensors blob whose header carries numbers and a seal, the SHA-256 of all other bytes: what is
damaged is noticed, and nothing in it is ever executed.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from spatl.disk.writing import sync_names
from spatl.errors import DamagedState, SpatlError, naming

_SEAL_MARK = rb"\"seal\": \""  # as it stands in the header, which is JSON in JSON
_NO_SEAL = b"0" * 64
PIECE_BYTES = 1 << 20  # bytes at a time
_LONGEST_HEADER = 100_000_000  # as the package has it
_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn, "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16,
    "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32, "C64": torch.complex64,
    "F64": torch.float64, "I64": torch.int64, "U64": torch.uint64,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ORDER = {dtype: place for place, dtype in enumerate(_DTYPES.values())}  # the widest come first in a file


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """Tensor in a sealed file, read when it is needed.

    Attributes:
        path: The file.
        identity: Numbers that tell it from another file of that name.
        start: Where its bytes begin.
        dtype: Of its numbers.
        shape: Of the tensor.
    """

    path: Path
    identity: tuple[int, ...]
    start: int
    dtype: torch.dtype
    shape: torch.Size

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes."""
        return self.shape.numel() * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor.

        Raises:
            DamagedState: The file is not there any more, or another one.
        """
        return self._filled(torch.empty(self.shape, dtype=self.dtype), self.start)

    def part(self, part: slice) -> Tensor:
        """Some of its numbers, of a tensor of one dimension.

        Raises:
            DamagedState: As of `read`.
        """
        tensor = torch.empty(part.stop - part.start, dtype=self.dtype)
        return self._filled(tensor, self.start + part.start * self.dtype.itemsize)

    def _filled(self, tensor: Tensor, start: int) -> Tensor:
        buffer = bytes_of(tensor)
        with self._opened() as file:
            file.seek(start)
            if file.readinto(buffer) != len(buffer):
                raise DamagedState(f"{self.path} ends too early")
        return tensor

    def pieces(self) -> Iterator[bytes]:
        """Its bytes, some at a time.

        Raises:
            DamagedState: As of `read`.
        """
        with self._opened() as file:
            file.seek(self.start)
            left = self.num_bytes
            while left:
                piece = file.read(min(left, PIECE_BYTES))
                if not piece:
                    raise DamagedState(f"{self.path} ends too early")
                left -= len(piece)
                yield piece

    @contextmanager
    def _opened(self) -> Iterator[BufferedReader]:
        try:
            with self.path.open("rb") as file:
                if identity_of(file) != self.identity:
                    raise DamagedState(f"{self.path} was replaced while it was in use")
                yield file
        except OSError as error:
            raise DamagedState(f"cannot read {self.path}: {error.strerror}") from error


def some_of(tensor: Tensor | StoredTensor, part: slice) -> Tensor:
    """Some numbers of a tensor of one dimension, read from its file if it lies in one."""
    return tensor.part(part) if isinstance(tensor, StoredTensor) else tensor[part]


def as_tensor(tensor: Tensor | StoredTensor) -> Tensor:
    """A tensor, read from its file if it lies in one."""
    return tensor.read() if isinstance(tensor, StoredTensor) else tensor


def seal(tensors: Mapping[str, Tensor | StoredTensor], header: Mapping[str, Any], *, version: int) -> bytes:
    """Serialise tensors and a header of JSON values, in a format of some version."""
    file = io.BytesIO()
    _write(file, tensors, header, version=version)
    return file.getvalue()


def write_sealed(
    path: Path, tensors: Mapping[str, Tensor | StoredTensor], header: Mapping[str, Any], *, version: int,
    synced: bool = True,
) -> None:  # fmt: skip
    """Write what `seal` returns to a file, some of it at a time, and wait until the disk has it, as `write_synced`.

    Where it is not `synced`, nobody waits: the file survives the process, and the machine after `sync_files_below`.
    """
    with naming(path), path.open("wb") as file:
        _write(file, tensors, header, version=version)
        file.flush()
        if synced:
            os.fsync(file.fileno())


def replace_sealed(
    path: Path, tensors: Mapping[str, Tensor | StoredTensor], header: Mapping[str, Any], *, version: int
) -> None:
    """Put a sealed file in the place of an old one, as `replace_file`."""
    temporary = path.with_name(path.name + ".tmp")
    write_sealed(temporary, tensors, header, version=version)
    os.replace(temporary, path)
    sync_names(path.parent)


def read_sealed(
    path: Path, *, version: int, what: str, known: tuple[int, ...] | None = None
) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """Check a file that `write_sealed` wrote; its tensors stay in it until they are read.

    Args:
        path: The file.
        version: The version of the format that the caller reads.
        what: What errors call it.
        known: The identity (`identity_of`) of the file where this process has written it itself, or checked it: the
            same file is not hashed again.

    Returns:
        The tensors, and the header.

    Raises:
        FileNotFoundError: It is not there.
        DamagedState: It is damaged.
        SpatlError: It is of another version.
    """
    with path.open("rb") as file:
        identity = identity_of(file)
        table, start, header = _checked(file, identity[-1], version=version, what=what, is_known=identity == known)
    try:
        tensors = {
            name: StoredTensor(
                path, identity, start + each["data_offsets"][0], _DTYPES[each["dtype"]], torch.Size(each["shape"])
            )
            for name, each in table.items()
        }
    except (KeyError, TypeError) as error:
        raise DamagedState(f"{what} is damaged: {type(error).__name__}: {error}") from error
    return tensors, header


def unseal(data: bytes, *, version: int, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `seal` wrote.

    Args:
        data: The bytes.
        version: As of `read_sealed`.
        what: Likewise.

    Returns:
        The tensors, and the header.

    Raises:
        DamagedState: The bytes are damaged.
        SpatlError: They are of another version.
    """
    _, _, header = _checked(io.BytesIO(data), len(data), version=version, what=what)
    try:
        return load(data), header
    except SafetensorError as error:
        raise DamagedState(f"{what} is damaged: {error}") from error


def _checked(
    file: BinaryIO, num_bytes: int, *, version: int, what: str, is_known: bool = False
) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """Read a sealed file to its end: its table of tensors, where their bytes begin, and its header.

    Of one that is known the header alone.

    Raises:
        DamagedState: As of `unseal`.
        SpatlError: Likewise.
    """
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(_LONGEST_HEADER, num_bytes - 8):
        raise DamagedState(f"{what} is damaged: it has no header")
    head = length.to_bytes(8, "little") + file.read(length)
    sealed = _SEAL_MARK in head  # an older version may have had no seal
    if sealed and not is_known:
        place = seal_place(head)
        digest = _digest_around(head, place)
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
        if head[place : place + len(_NO_SEAL)] != digest.hexdigest().encode():
            raise DamagedState(f"{what} is damaged: its SHA-256 is not as written")
    try:
        table: dict[str, Any] = json.loads(head[8:])
        header: dict[str, Any] = json.loads(table.pop("__metadata__")["spatl"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedState(f"{what} is damaged: {type(error).__name__}: {error}") from error
    if not sealed and header.get("format") == version:
        raise DamagedState(f"{what} is damaged: it has no seal")
    if header.get("format") != version:
        raise SpatlError(f"{what} has format {header.get('format')}, this version reads {version}")
    return table, len(head), header


def _write(
    file: BinaryIO, tensors: Mapping[str, Tensor | StoredTensor], header: Mapping[str, Any], *, version: int
) -> None:
    """Write a safetensors blob, byte by byte as the package writes it, and then its seal into it."""
    content = {"format": version, "seal": _NO_SEAL.decode(), **header}
    table: dict[str, Any] = {"__metadata__": {"spatl": json.dumps(content)}}
    ordered = sorted(tensors.items(), key=lambda each: (-_ORDER[each[1].dtype], each[0]))
    start = 0
    for name, tensor in ordered:
        end = start + tensor.shape.numel() * tensor.dtype.itemsize
        table[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    place = seal_place(head)
    file.write(head)
    digest = _digest_around(head, place)
    for _, tensor in ordered:
        pieces: Iterable[bytes | memoryview] = (
            tensor.pieces() if isinstance(tensor, StoredTensor) else (bytes_of(tensor.detach().cpu().contiguous()),)
        )
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
    file.seek(place)
    file.write(digest.hexdigest().encode())


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, which are its own."""
    flat = tensor.reshape(-1)
    if flat.stride() != (1,):  # a single number, which is contiguous whatever its strides are
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().data


def identity_of(file: Path | BinaryIO) -> tuple[int, ...]:
    """Return numbers that tell a file from another one of its name, and from itself once it was written to.

    Raises:
        FileNotFoundError: It is not there.
    """
    status = os.stat(file) if isinstance(file, Path) else os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def seal_place(data: bytes) -> int:
    """Return the place at which the seal's 64 hexadecimal digits begin."""
    return data.index(_SEAL_MARK) + len(_SEAL_MARK)


def _digest_around(head: bytes, place: int) -> "hashlib._Hash":
    """SHA-256 of the first bytes of a file but for the seal, which lies in them."""
    digest = hashlib.sha256(head[:place])
    digest.update(head[place + len(_NO_SEAL) :])
    return digest
