"""What a client keeps between rounds, and where: private, never sent, written whole or not at all.

The state is one safetensors blob whose header carries the integers, so that replacing one file is atomic. It lies in
the client's own directory, or, where a run has none, in the memory that Flower keeps for the node.
"""

import json
import os
from collections.abc import Mapping
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

_FORMAT = 2
_FILE = "state.safetensors"


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
            "control_round": self.control_round,
            "pending_round": self.pending_round,
        }
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return bytes(save(on_cpu, metadata={"spatl": json.dumps(header)}))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            SpatlError: The bytes are damaged or of another format.
        """
        try:
            tensors = load(data)
            header: dict[str, Any] = json.loads(_metadata(data)["spatl"])
        except (SafetensorError, ValueError, KeyError) as error:
            raise SpatlError(f"the client's state is damaged: {error}") from error
        if header["format"] != _FORMAT:
            raise SpatlError(f"the client's state has format {header['format']}, this version reads {_FORMAT}")
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

    def load(self) -> ClientState | None:
        """The state last saved, or None."""
        ...

    def save(self, state: ClientState) -> None:
        """Replace the state."""
        ...


class DirectoryStore:
    """A file in the client's own directory, replaced atomically."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _FILE

    def load(self) -> ClientState | None:
        """The state last saved, or None."""
        try:
            return ClientState.from_bytes(self._path.read_bytes())
        except FileNotFoundError:
            return None

    def save(self, state: ClientState) -> None:
        """Write to a temporary name, then rename."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_bytes(state.to_bytes())
        os.replace(temporary, self._path)


class ContextStore:
    """The records Flower keeps for a node in memory during a run."""

    def __init__(self, records: RecordDict) -> None:
        self._records = records

    def load(self) -> ClientState | None:
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
