"""What the server knows between rounds, and its file: written after every round, so that a killed run goes on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from server.planes import squeeze, unsqueeze
from spatl.errors import SpatlError
from spatl.rounds.admission import Admission, Size
from spatl.sealed_files import replace_sealed, seal, unseal

FILE = "server.checkpoint"
_FORMAT = 4
_BY_CLIENT = ("folded", "held", "astray", "num_examples")
_OF_ADMISSION = ("failures", "away", "trust")
_SQUEEZED = (torch.float32, torch.int32)
_OPTIONAL = ("control", "held_control")


@dataclass(frozen=True, eq=False)
class ServerState:
    """What the server knows between rounds.

    Attributes:
        encoder: float32 [N], x.
        control: float32 [P], c; None where the method does not correct gradients.
        held_control: float32 [P], c as the clients hold it; None as above.
        control_share: The share of all clients' weight that stood behind the last change of c.
        folded: The last round of each client that is part of x and c.
        held: The version of the encoder that each client is known to hold, 0 for the initial one; once a client is sent
            something, the version that it starts from.
        astray: How much of the c that each client derived is not c, at most: 1 for a client that missed a version.
        cannot_build: The clients whose initial encoder is another one.
        first_loss: The median training loss of the first round with an update, at least 1 and that of a guess among all
            classes; None before it.
        useless_rounds: How many rounds in a row had nothing usable.
        admission: What decides who is let in.
        num_examples: The training examples of each client that ever registered: what c is the weighted sum over.
    """

    encoder: Tensor
    control: Tensor | None
    held_control: Tensor | None
    control_share: float
    folded: Mapping[int, int]
    held: Mapping[int, int]
    astray: Mapping[int, float]
    cannot_build: frozenset[int]
    first_loss: float | None = None
    useless_rounds: int = 0
    admission: Admission = field(default_factory=Admission)
    num_examples: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run between two rounds.

    Attributes:
        server_round: The round that is over.
        state: The server's state.
        reference: The encoder as the clients hold it (`Reference.tensors`).
    """

    server_round: int
    state: ServerState
    reference: Mapping[str, Tensor]

    def to_bytes(self) -> bytes:
        """Serialise the checkpoint."""
        return seal(*self._content(), version=_FORMAT)

    def write(self, path: Path) -> None:
        """Put what `to_bytes` returns in the place of a file, some of it at a time."""
        replace_sealed(path, *self._content(), version=_FORMAT)

    def _content(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        state = self.state
        tensors = {
            "encoder": state.encoder,
            **{name: value for name in _OPTIONAL if (value := getattr(state, name)) is not None},
            **{f"reference/{name}": tensor for name, tensor in self.reference.items()},
        }
        header = {
            "server_round": self.server_round,
            "control_share": state.control_share,
            **{name: _named(getattr(state, name)) for name in _BY_CLIENT},
            "cannot_build": sorted(state.cannot_build),
            "first_loss": state.first_loss,
            "useless_rounds": state.useless_rounds,
            "sizes": [_pair(size) for size in state.admission.sizes],
            "largest": _pair(largest) if (largest := state.admission.largest) is not None else None,
            **{name: _named(getattr(state.admission, name)) for name in _OF_ADMISSION},
        }
        squeezed = {
            name: str(each.dtype).removeprefix("torch.")
            for name, each in sorted(tensors.items())  # so that equal states are equal bytes
            if each.dtype in _SQUEEZED
        }
        tensors |= {name: squeeze(tensors[name]) for name in squeezed}
        header["squeezed"] = squeezed
        return tensors, header

    @classmethod
    def from_bytes(cls, data: bytes) -> "Checkpoint":
        """Read what `to_bytes` wrote.

        Raises:
            DamagedState: The bytes are damaged.
            SpatlError: They are of another format.
        """
        tensors, header = unseal(data, version=_FORMAT, what="the server's checkpoint")
        for name, dtype in header["squeezed"].items():
            tensors[name] = unsqueeze(tensors[name], getattr(torch, dtype))
        by_client, of_admission = (
            {name: {int(client): value for client, value in header[name].items()} for name in names}
            for names in (_BY_CLIENT, _OF_ADMISSION)
        )
        state = ServerState(
            encoder=tensors["encoder"],
            control=tensors.get("control"),
            held_control=tensors.get("held_control"),
            control_share=header["control_share"],
            cannot_build=frozenset(header["cannot_build"]),
            first_loss=header["first_loss"],
            useless_rounds=header["useless_rounds"],
            admission=Admission(
                sizes=tuple(Size(*pair) for pair in header["sizes"]),
                largest=Size(*header["largest"]) if header["largest"] is not None else None,
                **of_admission,
            ),
            **by_client,
        )
        prefix = "reference/"
        reference = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
        return cls(header["server_round"], state, reference)


def _pair(size: Size) -> list[float]:
    return [size.rms, size.rate]


def _named(by_client: Mapping[int, Any]) -> dict[str, Any]:
    return {str(client): value for client, value in sorted(by_client.items())}


def save_checkpoint(checkpoint: Checkpoint, directory: Path) -> None:
    """Put a checkpoint in the place of the one before."""
    checkpoint.write(directory / FILE)


def load_checkpoint(directory: Path) -> Checkpoint | None:
    """The last checkpoint of a run, or None before its first round is over.

    Raises:
        SpatlError: It is damaged, or of another version.
    """
    path = directory / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SpatlError(f"cannot read {path}: {error.strerror}") from error
    try:
        return Checkpoint.from_bytes(data)
    except SpatlError as error:
        raise type(error)(f"{error} ({path})") from error
