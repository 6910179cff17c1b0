"""Store of a simulated client's state: in one file with those of all others (`spatl.runs.states`)."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from torch import Tensor

from clients.store import state_before
from spatl.artifacts.description import ModelDescription
from spatl.errors import SpatlError, StateBusy, SystemFault, system_fault
from spatl.models.weights import packed
from spatl.rounds.client_state import ClientState
from spatl.runs.files import CLIENTS_LOCK
from spatl.runs.states import States

if sys.platform != "win32":
    import fcntl

_LOOK_SECONDS: Final = 0.025


class SharedStore:
    """One client's place in the file of all.

    Args:
        run: The run's directory.
        states: The file in it.
        client: The client's partition id.
        wait: Seconds to wait for another process that works for this client.
    """

    def __init__(self, run: Path, states: States, client: int, *, wait: float = 3.0) -> None:
        self._lock = run / CLIENTS_LOCK
        self._states = states
        self._client = client
        self._wait = wait

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from working for this client, and from no other; Windows has no such lock.

        Raises:
            StateBusy: Another process works for it.
        """
        if sys.platform == "win32":
            yield
            return
        try:
            opened = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            kind = SpatlError if system_fault(error) is None else SystemFault
            raise kind(f"cannot make {self._lock}: {error.strerror}") from error
        try:
            self._take(opened)
            yield
        finally:
            os.close(opened)  # and with it, this process's locks of that file

    def _take(self, opened: int) -> None:
        deadline = time.monotonic() + self._wait
        while True:
            try:
                fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._client)
            except OSError as error:
                if not isinstance(error, BlockingIOError | PermissionError):
                    raise
                if time.monotonic() >= deadline:
                    raise StateBusy(f"another process works for client {self._client} ({self._lock})") from None
                time.sleep(_LOOK_SECONDS)
            else:
                return

    def load(self, *, before: int | None = None) -> ClientState | None:
        """The state to go on from, or None; the argument and errors as of `DirectoryStore.load`."""
        return state_before(
            lambda: self._states.read(self._client), lambda: self._states.read(self._client, before=True),
            before=before, where=f"client {self._client} in {self._states.path}",
            anew="put the file back from a copy of the run",
        )  # fmt: skip

    def save(self, state: ClientState, *, question: bytes = b"", answer: bytes = b"") -> None:
        """Replace the state; no answer is kept: in a simulation none is lost on its way."""
        self._states.write(self._client, state)

    def answer(self, question: bytes) -> bytes | None:
        """Return None."""
        return None

    def save_model(
        self, description: ModelDescription | None, tensors: Mapping[str, Tensor], private: Mapping[str, Tensor]
    ) -> None:
        """Leave what is the client's own of a model; the run has the rest."""
        self._states.write_part(self._client, packed({**tensors, **private}))

    def agreed(self) -> str | None:
        """Return None: only devices have data that need an agreement."""
        return None

    def save_agreed(self, text: str) -> None:
        """Do nothing."""
