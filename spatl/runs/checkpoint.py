"""Checkpoint of the server: its state after a round in a file, so that a killed run goes on."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatl.errors import DamagedState, SpatlError
from spatl.rounds.admission import Admission, Size
from spatl.rounds.best import Best
from spatl.rounds.downlink import Versions
from spatl.rounds.server_optimizer import Moments
from spatl.rounds.server_state import ServerState
from spatl.runs.files import CHECKPOINT, CHECKPOINT_BEFORE
from spatl.runs.planes import pack_planes, unpack_planes
from spatl.sealed_files import replace_sealed, seal, unseal
from spatl.wire.statistics import Statistics

_FORMAT = 5
_BY_CLIENT = {
    "folded": "folded", "held": "held", "astray": "control_staleness", "num_examples": "num_examples",
    "weights": "weights",
}  # fmt: skip
"""The name in the file, and in the state."""
_OF_ADMISSION = ("failures", "away", "trust", "agreed")
_SQUEEZED = (torch.float32, torch.int32)
_OPTIONAL = ("control", "held_control")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run between two rounds.

    Attributes:
        server_round: The round that is over.
        state: The server's state.
    """

    server_round: int
    state: ServerState

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
            **{f"reference/{name}": tensor for name, tensor in state.versions.tensors().items()},
        }
        if state.statistics is not None:
            tensors |= {"means": state.statistics.means, "variances": state.statistics.variances}
        if (moments := state.moments) is not None:
            tensors["first_moment"] = moments.first
            tensors |= {} if moments.second is None else {"second_moment": moments.second}
        header = {
            "server_round": self.server_round,
            "control_share": state.control_share,
            **{name: _named(getattr(state, own)) for name, own in _BY_CLIENT.items()},
            "cannot_build": sorted(state.cannot_build),
            "forgotten": sorted(state.forgotten),
            "control_since": state.control_since,
            "first_loss": state.first_loss,
            "useless_rounds": state.useless_rounds,
            "sampling_seed": state.sampling_seed,
            "best": None if state.best is None else [state.best.accuracy, state.best.server_round],
            "sizes": [_pair(size) for size in state.admission.sizes],
            "largest": _pair(largest) if (largest := state.admission.largest) is not None else None,
            **{name: _named(getattr(state.admission, name)) for name in _OF_ADMISSION},
            **({} if moments is None else {"optimizer_steps": moments.steps}),
            "size_of": _named({client: _pair(size) for client, size in state.admission.by_client.items()}),
            "accord": list(state.admission.accord),
            "control_steps": [list(each) for each in state.control_steps],
        }
        squeezed = {
            name: str(each.dtype).removeprefix("torch.")
            for name, each in sorted(tensors.items())  # so that equal states are equal bytes
            if each.dtype in _SQUEEZED
        }
        tensors |= {name: pack_planes(tensors[name]) for name in squeezed}
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
            tensors[name] = unpack_planes(tensors[name], getattr(torch, dtype))
        by_client = {own: _by_client(header[name]) for name, own in _BY_CLIENT.items()}
        of_admission = {name: _by_client(header[name]) for name in _OF_ADMISSION}
        prefix = "reference/"
        versions = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
        state = ServerState(
            encoder=tensors["encoder"],
            control=tensors.get("control"),
            held_control=tensors.get("held_control"),
            control_share=header["control_share"],
            versions=Versions.of_tensors(versions),
            cannot_build=frozenset(header["cannot_build"]),
            forgotten=frozenset(header["forgotten"]),
            control_since=header["control_since"],
            first_loss=header["first_loss"],
            useless_rounds=header["useless_rounds"],
            sampling_seed=header["sampling_seed"],
            best=Best(*best) if (best := header.get("best")) else None,
            control_steps=tuple((damping, weight) for damping, weight in header.get("control_steps", ())),
            admission=Admission(
                sizes=tuple(Size(*pair) for pair in header["sizes"]),
                largest=Size(*header["largest"]) if header["largest"] is not None else None,
                by_client={client: Size(*pair) for client, pair in _by_client(header["size_of"]).items()},
                accord=tuple(header["accord"]),
                **of_admission,
            ),
            statistics=Statistics(tensors["means"], tensors["variances"]) if "means" in tensors else None,
            moments=_moments(tensors, header),
            **by_client,
        )
        return cls(header["server_round"], state)


def _moments(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Moments | None:
    if "first_moment" not in tensors:
        return None
    return Moments(header["optimizer_steps"], tensors["first_moment"], tensors.get("second_moment"))


def _pair(size: Size) -> list[float]:
    return [size.rms, size.rate]


def _named(by_client: Mapping[int, Any]) -> dict[str, Any]:
    return {str(client): value for client, value in sorted(by_client.items())}


def _by_client(named: Mapping[str, Any]) -> dict[int, Any]:
    return {int(client): value for client, value in named.items()}


def save_checkpoint(checkpoint: Checkpoint, directory: Path) -> None:
    """Put a checkpoint in the place of the one before, which is kept under another name."""
    path = directory / CHECKPOINT
    if path.exists():
        temporary = directory / f"{CHECKPOINT_BEFORE}.tmp"
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)
        os.replace(temporary, directory / CHECKPOINT_BEFORE)
    checkpoint.write(path)


def load_checkpoint(directory: Path) -> Checkpoint | None:
    """The last checkpoint of a run, or None before its first round is over.

    Raises:
        SpatlError: It is damaged, or of another version.
    """
    path, before = directory / CHECKPOINT, directory / CHECKPOINT_BEFORE
    try:
        return _read(path)
    except FileNotFoundError:
        return None
    except DamagedState as error:
        try:
            known = _read(before).server_round
        except (SpatlError, FileNotFoundError):
            raise error from None
        raise DamagedState(
            f"{error}; the one before it is whole, of round {known}: mv {before} {path}, and resume"
        ) from error


def _read(path: Path) -> Checkpoint:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SpatlError(f"cannot read {path}: {error.strerror}") from error
    try:
        return Checkpoint.from_bytes(data)
    except SpatlError as error:
        raise type(error)(f"{error} ({path})") from error
