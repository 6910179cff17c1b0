"""What a client keeps between rounds, and where: private, never sent, written whole or not at all.

The state is one safetensors blob whose header carries the integers and a seal, the SHA-256 of all other bytes: one
file is replaced atomically, and a damaged one is never used. It lies in the client's own directory, with the state
before it beside it, or, where a run has none, in the memory that Flower keeps for the node.
"""

import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from flwr.app import ConfigRecord, RecordDict
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from spatl.errors import SpatlError
from spatl.reference import Held
from spatl.selection.layout import EncoderLayout
from spatl.training.control import fading

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

_FORMAT = 3
_FILE = "state.safetensors"
_PREVIOUS = "previous.safetensors"
_TEMPORARY = "state.tmp"
_LOCK = "state.lock"
_SEAL_MARK = rb"\"seal\": \""  # as it stands in the header, which is JSON in JSON
_NO_SEAL = b"0" * 64


class DamagedState(SpatlError):
    """Stored bytes that are not as they were written."""


@dataclass(frozen=True, eq=False)
class ClientState:
    """A client's state at the end of a round.

    Attributes:
        private: The predictor and whatever else of the model is not shared, by the model's names; empty at first.
        control: float32 [P], c_i as of `control_round`, without the pending update.
        control_round: The server round that `control` belongs to; it fades with every later one.
        pending_round: The round whose update is under way, or 0.
        pending_control: float32 [P], c_i of that round if the server folds the update in; empty without one.
        selector: What the selector keeps.
        held: The versions of the server's encoder that the client holds.
    """

    private: Mapping[str, Tensor]
    control: Tensor
    control_round: int = 0
    pending_round: int = 0
    pending_control: Tensor = field(default_factory=lambda: torch.zeros(0))
    selector: Mapping[str, Tensor] = field(default_factory=dict)
    held: Held = field(default_factory=lambda: Held({}))

    @classmethod
    def initial(cls, layout: EncoderLayout) -> Self:
        """The state of a client that never trained: c_i = 0."""
        return cls(private={}, control=torch.zeros(layout.num_parameter_entries))

    def settle(self, *, acknowledged_round: int, server_round: int, half_life: float | None) -> "ClientState":
        """Commit or drop the pending update, and let c_i fade to the present.

        Args:
            acknowledged_round: The last round of this client that the server folded in; the pending update is
                committed if it is of that round.
            server_round: The present.
            half_life: Rounds in which control variates fade to a half, or None.
        """
        folded = self.pending_round != 0 and acknowledged_round == self.pending_round
        control = self.pending_control if folded else self.control
        passed = server_round - self.control_round if self.control_round else 0
        return replace(
            self,
            control=control * fading(half_life, passed),
            control_round=server_round,
            pending_round=0,
            pending_control=torch.zeros(0),
        )

    def to_bytes(self) -> bytes:
        """Serialise the state."""
        tensors = {
            "control": self.control,
            "pending_control": self.pending_control,
            **{f"private/{name}": tensor for name, tensor in self.private.items()},
            **{f"selector/{name}": tensor for name, tensor in self.selector.items()},
            **{f"held/{version}": tensor for version, tensor in self.held.offsets.items()},
        }
        if self.held.base is not None:
            tensors["base"] = self.held.base
        if self.held.control is not None:
            tensors["held_control"] = self.held.control
        header = {
            "format": _FORMAT,
            "seal": _NO_SEAL.decode(),
            "control_round": self.control_round,
            "pending_round": self.pending_round,
        }
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = bytes(save(on_cpu, metadata={"spatl": json.dumps(header)}))
        place = _seal_place(data)
        return b"".join((data[:place], _seal_of(data, place), data[place + len(_NO_SEAL) :]))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            DamagedState: The bytes are damaged.
            SpatlError: They are of another format.
        """
        sealed = _SEAL_MARK in data  # format 2 had no seal
        if sealed and not _is_whole(data):
            raise DamagedState("the client's state is damaged: its SHA-256 is not as written")
        try:
            tensors = load(data)
            header: dict[str, Any] = json.loads(_metadata(data)["spatl"])
        except (SafetensorError, ValueError, KeyError) as error:
            raise DamagedState(f"the client's state is damaged: {error}") from error
        if not sealed and header.get("format") == _FORMAT:
            raise DamagedState("the client's state is damaged: it has no seal")
        if header.get("format") != _FORMAT:
            raise SpatlError(f"the client's state has format {header.get('format')}, this version reads {_FORMAT}")
        return cls(
            private=_below("private/", tensors),
            control=tensors["control"],
            control_round=header["control_round"],
            pending_round=header["pending_round"],
            pending_control=tensors["pending_control"],
            selector=_below("selector/", tensors),
            held=Held(
                {int(version): offsets for version, offsets in _below("held/", tensors).items()},
                tensors.get("base"),
                tensors.get("held_control"),
            ),
        )


class StateStore(Protocol):
    """Where one client's state lies."""

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes out, from before `load` until after `save`."""
        ...

    def load(self, *, folded_round: int = 0) -> ClientState | None:
        """The state last saved, or None; the arguments as of `DirectoryStore.load`."""
        ...

    def save(self, state: ClientState) -> None:
        """Replace the state."""
        ...


class DirectoryStore:
    """A file in the client's own directory, replaced atomically, and the one before it.

    Args:
        directory: The client's own; made when it is first needed.
        wait: Seconds to wait for another process that has the state.
    """

    def __init__(self, directory: Path, *, wait: float = 3.0) -> None:
        self._directory = directory
        self._path = directory / _FILE
        self._previous = directory / _PREVIOUS
        self._temporary = directory / _TEMPORARY
        self._wait = wait

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out, and clear what a killed one left; Windows has no such lock.

        Raises:
            SpatlError: Another process has the state.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        if sys.platform == "win32":
            yield
            return
        lock = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            deadline = time.monotonic() + self._wait
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise SpatlError(f"another process uses the client's state in {self._directory}") from None
                    time.sleep(0.05)
            self._temporary.unlink(missing_ok=True)
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)  # closing is not enough where a forked process has it too
        finally:
            os.close(lock)

    def load(self, *, folded_round: int = 0) -> ClientState | None:
        """The state last saved, or the one before it where that is damaged or missing, or None.

        The state before is one to go on from only while the server has folded in nothing later: then it is as if the
        later rounds had never reached the client. Otherwise the c_i that the server's c contains is gone.

        Args:
            folded_round: The last round of this client whose c_i the server's c contains; 0 for none.

        Raises:
            SpatlError: The state is damaged and cannot be replaced, or of another format.
        """
        try:
            return ClientState.from_bytes(self._path.read_bytes())
        except FileNotFoundError:
            damage = DamagedState("the client's state is missing")
        except DamagedState as error:
            damage = error
        try:
            previous = ClientState.from_bytes(self._previous.read_bytes())
        except FileNotFoundError:
            if self._path.exists():
                raise DamagedState(f"{damage} ({self._path}), and there is none before it") from damage
            return None
        except DamagedState:
            raise DamagedState(f"{damage} ({self._path}), and so is the one before it") from damage
        if previous.control_round < folded_round:
            raise DamagedState(
                f"{damage} ({self._path}), and the one before it is of round {previous.control_round}, but the server "
                f"has folded in round {folded_round}: without {self._directory} the client starts anew, its c_i lost"
            ) from damage
        logger.warning("%s (%s): going on from the one before it, of round %d", damage, self._path,
                       previous.control_round)  # fmt: skip
        return previous

    def save(self, state: ClientState) -> None:
        """Write to a temporary name, keep the state before unless it is damaged, then rename."""
        data = state.to_bytes()
        self._directory.mkdir(parents=True, exist_ok=True)
        with self._temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if self._path.exists() and _is_whole(self._path.read_bytes()):
            os.replace(self._path, self._previous)
        os.replace(self._temporary, self._path)
        _sync(self._directory)


class ContextStore:
    """The records Flower keeps for a node in memory during a run."""

    def __init__(self, records: RecordDict) -> None:
        self._records = records

    def locked(self) -> AbstractContextManager[None]:
        """Do nothing: nobody else has this memory."""
        return nullcontext()

    def load(self, *, folded_round: int = 0) -> ClientState | None:
        """The state last saved, or None."""
        if "spatl" not in self._records:
            return None
        data = self._records.config_records["spatl"]["state"]
        assert isinstance(data, bytes)
        return ClientState.from_bytes(data)

    def save(self, state: ClientState) -> None:
        """Replace the record."""
        self._records["spatl"] = ConfigRecord({"state": state.to_bytes()})


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _metadata(data: bytes) -> dict[str, str]:
    """The `__metadata__` of a safetensors blob: an 8-byte length, then that much JSON."""
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata


def _seal_place(data: bytes) -> int:
    """Where the seal's 64 hexadecimal digits begin."""
    return data.index(_SEAL_MARK) + len(_SEAL_MARK)


def _seal_of(data: bytes, place: int) -> bytes:
    """The SHA-256 of everything but the seal, in hexadecimal digits."""
    digest = hashlib.sha256(memoryview(data)[:place])
    digest.update(memoryview(data)[place + len(_NO_SEAL) :])
    return digest.hexdigest().encode()


def _is_whole(data: bytes) -> bool:
    """Whether the bytes are as they were sealed."""
    if _SEAL_MARK not in data:
        return False
    place = _seal_place(data)
    return data[place : place + len(_NO_SEAL)] == _seal_of(data, place)


def _sync(directory: Path) -> None:
    """Have the names in a directory written to the disk; Windows does so by itself."""
    if sys.platform == "win32":
        return
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
