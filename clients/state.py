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
from spatl.selection.layout import EncoderLayout

_FORMAT = 1
_FILE = "state.safetensors"


@dataclass(frozen=True, eq=False)
class ClientState:
    """A client's state at the end of a round.

    Attributes:
        private: The predictor and whatever else of the model is not shared, by the model's names; empty at first.
        control: float32 [P], c_i as of the last acknowledged round.
        age: int64 [C], own rounds since each channel's c_i was refreshed.
        pending_round: The round whose update is under way, or 0.
        pending_control: float32 [P], c_i if the server folds that update in; empty without one.
        pending_mask: bool [C], the channels that update refreshed; empty without one.
        selector: What the selector keeps.
    """

    private: Mapping[str, Tensor]
    control: Tensor
    age: Tensor
    pending_round: int = 0
    pending_control: Tensor = field(default_factory=lambda: torch.zeros(0))
    pending_mask: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    selector: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def initial(cls, layout: EncoderLayout) -> Self:
        """The state of a client that never trained: c_i = 0, and every channel out of date."""
        never = torch.full((layout.num_channels,), 2**31, dtype=torch.int64)
        return cls(private={}, control=torch.zeros(layout.num_parameter_entries), age=never)

    def acknowledge(self, server_round: int) -> "ClientState":
        """Settle the pending update: commit it if `server_round`, the last one the server folded in, is its round."""
        if self.pending_round == 0:
            return self
        settled = replace(
            self,
            age=self.age + 1,
            pending_round=0,
            pending_control=torch.zeros(0),
            pending_mask=torch.zeros(0, dtype=torch.bool),
        )
        if server_round != self.pending_round:
            return settled
        age = torch.where(self.pending_mask, torch.zeros_like(self.age), settled.age)
        return replace(settled, control=self.pending_control, age=age)

    def to_bytes(self) -> bytes:
        """Serialise the state."""
        tensors = {
            "control": self.control,
            "age": self.age,
            "pending_control": self.pending_control,
            "pending_mask": self.pending_mask,
            **{f"private/{name}": tensor for name, tensor in self.private.items()},
            **{f"selector/{name}": tensor for name, tensor in self.selector.items()},
        }
        header = {"format": _FORMAT, "pending_round": self.pending_round}
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
            age=tensors["age"],
            pending_round=header["pending_round"],
            pending_control=tensors["pending_control"],
            pending_mask=tensors["pending_mask"],
            selector=_below("selector/", tensors),
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
