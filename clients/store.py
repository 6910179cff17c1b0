"""Store of a client's state: a directory of its own, or the memory that Flower keeps for the node.

The clients of a simulation have one file together (`clients.shared_store`). In a directory of its own, the state is one
safetensors blob whose header carries the integers and a seal, the SHA-256 of all other bytes: one file is replaced
atomically, and a damaged one is never used. The state of the round before lies beside it: a round that the server asks
for again, because it was killed in it, starts from that one. The last answer lies there too, for a question that comes
again because it was lost on its way: no work is done twice.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from clients.remembered import Remembered, in_memory
from spatl.artifacts.description import ModelDescription
from spatl.artifacts.model_files import write_model
from spatl.artifacts.names import MODEL, PRIVATE
from spatl.disk.locks import alone_in
from spatl.disk.writing import replace_file, sync_names
from spatl.errors import DamagedState, SpatlError, StateBusy
from spatl.models.weights import packed
from spatl.rounds.client_state import FORMAT, ClientState
from spatl.runs.files import PREVIOUS_STATE, STATE
from spatl.sealed_files import read_sealed

logger = logging.getLogger(__name__)

_TEMPORARY = "state.tmp"

_LOCK = "state.lock"

_AGREED = "agreed.json"

_ANSWER = "answer.bin"
_DIGEST_BYTES = 16  # of a question, and of an answer

_REMEMBERED = Remembered()


class StateStore(Protocol):
    """Place of one client's state."""

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes out, from before `load` until after `save`."""
        ...

    def load(self, *, before: int | None = None) -> ClientState | None:
        """The state to go on from, or None; the argument as of `DirectoryStore.load`."""
        ...

    def save(self, state: ClientState, *, question: bytes = b"", answer: bytes = b"") -> None:
        """Replace the state; the arguments as of `DirectoryStore.save`."""
        ...

    def answer(self, question: bytes) -> bytes | None:
        """Return the answer to a question that was kept with the state; None where there is none."""
        ...

    def save_model(
        self, description: ModelDescription | None, tensors: Mapping[str, Tensor], private: Mapping[str, Tensor]
    ) -> None:
        """Leave a model as `DirectoryStore.save_model` does, where there is a place for it."""
        ...

    def agreed(self) -> str | None:
        """Return what the clients have agreed on, as JSON; None before they have."""
        ...

    def save_agreed(self, text: str) -> None:
        """Keep what the clients have agreed on, for the messages to come."""
        ...


class DirectoryStore:
    """A file in the client's own directory, replaced atomically, and the one before it.

    Args:
        directory: The client's own; made when it is first needed.
        wait: Seconds to wait for another process that has the state.
        synced: Whether a state is on the disk once it is saved. Where it is not, a killed process loses nothing, and a
            machine without power what was saved since all files were synced: the state of the round before is whole.
            Where it is not, this is a simulation, whose process remembers what it has saved.
    """

    def __init__(self, directory: Path, *, wait: float = 3.0, synced: bool = True) -> None:
        self._directory = directory
        self._path = directory / STATE
        self._previous = directory / PREVIOUS_STATE
        self._temporary = directory / _TEMPORARY
        self._wait = wait
        self._synced = synced

    @property
    def directory(self) -> Path:
        """The client's own directory."""
        return self._directory

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out, and clear what a killed one left; Windows has no such lock.

        Raises:
            StateBusy: Another process has the state.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        otherwise = StateBusy(f"another process uses the client's state in {self._directory}")
        with alone_in(self._directory / _LOCK, otherwise=otherwise, wait=self._wait):
            self._temporary.unlink(missing_ok=True)
            yield

    def load(self, *, before: int | None = None) -> ClientState | None:
        """The state last saved, or the one of the round before where that fits better, or None for a client's first.

        It fits better where a round is repeated, and where the newest is damaged or missing. Whether the c_i in it is
        the one that the server's c contains is for others to see (`ClientState.has_control_of`).

        Args:
            before: The round that is about to be trained, so that its own state is not the one to start from.

        Raises:
            SpatlError: The state is damaged and cannot be replaced, of another format, or of rounds that the server
                has lost.
        """
        return state_before(
            lambda: self._read(self._path), lambda: self._read(self._previous), before=before, where=str(self._path),
            anew=f"without {self._directory} the client starts anew, its own parts lost",
        )  # fmt: skip

    def save(self, state: ClientState, *, question: bytes = b"", answer: bytes = b"") -> None:
        """Write to a temporary name, keep the state of the round before unless it is damaged, then rename.

        Args:
            state: The state.
            question: What names the question that led to it, where its answer is to be kept; 16 bytes.
            answer: The answer.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        if question:
            # An answer counts once the state names its question, so that the two are replaced at once.
            digest = hashlib.blake2b(answer, digest_size=_DIGEST_BYTES).digest()
            replace_file(self._directory / _ANSWER, b"".join((question, digest, answer)))
            state = replace(state, answered=question.hex())
        if not self._synced:
            state = in_memory(state)
        state.write(self._temporary, synced=self._synced)
        before = self._round_of_newest()
        if before is not None and before < state.control_round:
            os.replace(self._path, self._previous)
            _REMEMBERED.move(self._path, self._previous)
        if not self._synced:
            _REMEMBERED.keep(self._path, self._temporary, state)
        os.replace(self._temporary, self._path)
        if self._synced:
            sync_names(self._directory)

    def _round_of_newest(self) -> int | None:
        """The round of the state last saved; None where there is none, or a damaged one."""
        if (state := _REMEMBERED.of(self._path)) is not None:
            return state.control_round
        try:
            known = _REMEMBERED.written(self._path)
            _, before = read_sealed(self._path, version=FORMAT, what="the client's state", known=known)
        except (SpatlError, FileNotFoundError):
            return None
        return int(before["control_round"])

    def answer(self, question: bytes) -> bytes | None:
        """Return the answer to a question that was kept with the state; None where there is none, or it is damaged."""
        try:
            with (self._directory / _ANSWER).open("rb") as file:
                if file.read(_DIGEST_BYTES) != question:
                    return None
                digest, answer = file.read(_DIGEST_BYTES), file.read()
            if hashlib.blake2b(answer, digest_size=_DIGEST_BYTES).digest() != digest:
                return None
            _, header = read_sealed(self._path, version=FORMAT, what="the client's state")
        except (FileNotFoundError, SpatlError):
            return None
        return answer if header["answered"] == question.hex() else None

    def save_model(
        self, description: ModelDescription | None, tensors: Mapping[str, Tensor], private: Mapping[str, Tensor]
    ) -> None:
        """Leave the client's model beside its state.

        Args:
            description: What it is, where it is a whole one; None where the tensors are the client's own part alone.
            tensors: By the network's own names.
            private: What the client has beside these.
        """
        if description is None:
            replace_file(self._directory / PRIVATE, packed(tensors), synced=self._synced)
        else:
            write_model(self._directory / MODEL, description, tensors, private=private)

    def agreed(self) -> str | None:
        """Return what the clients have agreed on, as JSON; None before they have."""
        try:
            return (self._directory / _AGREED).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def save_agreed(self, text: str) -> None:
        """Keep what the clients have agreed on, for the messages to come."""
        self._directory.mkdir(parents=True, exist_ok=True)
        replace_file(self._directory / _AGREED, text.encode())

    @staticmethod
    def _read(path: Path) -> ClientState | None:
        if (state := _REMEMBERED.of(path)) is not None:
            return state
        try:
            return ClientState.read(path, known=_REMEMBERED.written(path))
        except FileNotFoundError:
            return None


class ContextStore:
    """The records Flower keeps for a node in memory during a run."""

    def __init__(self, records: RecordDict) -> None:
        self._records = records

    def locked(self) -> AbstractContextManager[None]:
        """Do nothing: nobody else has this memory."""
        return nullcontext()

    def load(self, *, before: int | None = None) -> ClientState | None:
        """The state last saved, or the one of the round before where a round is repeated, or None."""
        newest = self._read("state")
        if newest is None or before is None or newest.control_round < before:
            return newest
        return _of_round_before(newest, self._read("previous"), before)

    def save(self, state: ClientState, *, question: bytes = b"", answer: bytes = b"") -> None:
        """Replace the record, and keep that of the round before; no answer is kept."""
        record = self._records.config_records.get("spatl") or ConfigRecord()
        before = self._read("state")
        if before is not None and before.control_round < state.control_round:
            record["previous"] = record["state"]
        record["state"] = state.to_bytes()
        self._records["spatl"] = record

    def answer(self, question: bytes) -> bytes | None:
        """Return None: in a simulation no answer is lost on its way."""
        return None

    def save_model(
        self, description: ModelDescription | None, tensors: Mapping[str, Tensor], private: Mapping[str, Tensor]
    ) -> None:
        """Do nothing: what is in memory goes with the run."""

    def agreed(self) -> str | None:
        """Return what the clients have agreed on, as JSON; None before they have."""
        record = self._records.config_records.get("agreed")
        return None if record is None else str(record["json"])

    def save_agreed(self, text: str) -> None:
        """Keep what the clients have agreed on, for the messages to come."""
        self._records["agreed"] = ConfigRecord({"json": text})

    def _read(self, name: str) -> ClientState | None:
        record = self._records.config_records.get("spatl")
        if record is None or name not in record:
            return None
        data = record[name]
        assert isinstance(data, bytes)
        return ClientState.from_bytes(data)


def state_before(
    read_newest: Callable[[], ClientState | None], read_previous: Callable[[], ClientState | None], *,
    before: int | None, where: str, anew: str,
) -> ClientState | None:  # fmt: skip
    """Choose between the state last saved and the one of the round before, as `DirectoryStore.load`.

    Args:
        read_newest: Reads the state last saved; None where there is none.
        read_previous: Likewise the one of the round before.
        before: As of `DirectoryStore.load`.
        where: The place, for messages.
        anew: How the client would start anew, likewise.
    """
    newest = damage = None
    try:
        newest = read_newest()
    except DamagedState as error:
        damage = error
    if newest is not None and (before is None or newest.control_round < before):
        return newest
    try:
        previous = read_previous()
    except DamagedState as error:
        raise DamagedState(f"{damage or error} ({where}), and so is the one before it") from error
    if newest is not None and before is not None:
        return _of_round_before(newest, previous, before)
    if previous is None and damage is None:
        return None
    damage = damage or DamagedState("the client's state is missing")
    if previous is None:
        raise DamagedState(f"{damage} ({where}), and there is none before it; {anew}") from damage
    if before is not None and previous.control_round > before:
        raise _lost_rounds(previous, before)
    logger.warning("%s (%s): going on from the one before it, of round %d", damage, where, previous.control_round)
    return previous


def _of_round_before(newest: ClientState, previous: ClientState | None, before: int) -> ClientState | None:
    """The state to repeat a round from, given the two there are; None for a client's first round.

    One that was left by the repeated round itself will do for a server that has lost more than that: its update is
    pending and dropped.
    """
    if previous is None and newest.control_round == before:
        return None
    if previous is None or previous.control_round > before:
        raise _lost_rounds(newest, before)
    return previous


def _lost_rounds(state: ClientState, before: int) -> SpatlError:
    return SpatlError(
        f"the server asks for round {before}, this client has been in round {state.control_round} and keeps no older "
        "state: the server goes on from too old a checkpoint"
    )
