"""States that this process has just written, so that the next message of a client need not read them again.

In a simulation one process works for client after client, and each message would read, check and decode the file that
the one before has written. What is remembered counts for as long as the file is the one that was written: another
process, or a user who puts back an older copy, makes another file of it.
"""

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Final

from torch import Tensor

from spatl.rounds.client_state import ClientState
from spatl.sealed_files import StoredTensor, as_tensor, identity_of

REMEMBERED_BYTES: Final = 1 << 28
"""Bytes of the tensors of all states that are remembered; beyond that the oldest are read from their files."""

STATE_BYTES: Final = 1 << 23
"""Bytes of a state that is remembered, and of an encoder's versions that are read from its file for that; of a large
network memory is dearer than reading a state again."""

_Identity = tuple[int, ...]


class Remembered:
    """States by the path of the file that each was written to."""

    def __init__(self, num_bytes: int = REMEMBERED_BYTES) -> None:
        self._most = num_bytes
        self._states: OrderedDict[Path, tuple[_Identity, ClientState, int]] = OrderedDict()
        self._num_bytes = 0
        self._written: dict[Path, _Identity] = {}  # of those that are not remembered, too

    def of(self, path: Path) -> ClientState | None:
        """The state in a file, where that is still the one that was remembered; None otherwise."""
        found = self._states.get(path)
        if found is None:
            return None
        identity, state, _ = found
        if _identity_of(path) != identity:
            self.forget(path)
            return None
        self._states.move_to_end(path)
        return _apart(state)

    def keep(self, path: Path, written: Path, state: ClientState) -> None:
        """Remember a state by the path that its file, which was written under another name, is about to get.

        None that has a part in the file that this one replaces: it would go with that.
        """
        self.forget(path)
        identity = _identity_of(written)
        if identity is not None:
            self._written[path] = identity
        if identity is None or any(isinstance(each, StoredTensor) for each in state.content()[0].values()):
            return
        num_bytes = sum(tensor.nbytes for tensor in _tensors_of(state))
        if num_bytes > STATE_BYTES:
            return
        self._states[path] = identity, _apart(state), num_bytes
        self._num_bytes += num_bytes
        while self._num_bytes > self._most:
            self.forget(next(iter(self._states)))

    def move(self, path: Path, to: Path) -> None:
        """Follow a file to another name."""
        self.forget(to)
        if path in self._written:
            self._written[to] = self._written.pop(path)
        if path in self._states:
            self._states[to] = self._states.pop(path)

    def written(self, path: Path) -> _Identity | None:
        """The identity of the file as this process wrote it, however large; None of one that it did not write."""
        return self._written.get(path)

    def forget(self, path: Path) -> None:
        """Remember nothing of a file."""
        self._written.pop(path, None)
        if (found := self._states.pop(path, None)) is not None:
            self._num_bytes -= found[2]


def _apart(state: ClientState) -> ClientState:
    """A state whose selector, which may be the user's and keep tensors, shares none with another."""
    return replace(state, selector={name: tensor.clone() for name, tensor in state.selector.items()})


def in_memory(state: ClientState, most_bytes: int = STATE_BYTES) -> ClientState:
    """Return a state with those versions of the encoder read that lie in a file, where they are not too many bytes."""
    stored = [each for each in state.held.offsets.values() if isinstance(each, StoredTensor)]
    if not stored or sum(each.num_bytes for each in stored) > most_bytes:
        return state
    offsets = {version: as_tensor(each) for version, each in state.held.offsets.items()}
    return replace(state, held=replace(state.held, offsets=offsets))


def _tensors_of(state: ClientState) -> list[Tensor]:
    kept: list[Tensor | StoredTensor | None] = [
        state.control,
        None if state.unfaded is None else state.unfaded.values,
        state.pending_control,
        state.held.base,
        state.held.control,
    ]
    kept += [*state.private.values(), *state.selector.values(), *state.own_model.values()]
    return [each for each in (*kept, *state.held.offsets.values()) if isinstance(each, Tensor)]


def _identity_of(path: Path) -> _Identity | None:
    try:
        return identity_of(path)
    except FileNotFoundError:
        return None
