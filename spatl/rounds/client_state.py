"""State of a client between rounds, private and never sent, and its form as sealed bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from spatl.channels.layout import EncoderLayout
from spatl.rounds.control import fading
from spatl.rounds.feedback import Feedback
from spatl.rounds.following import UNKNOWN_VERSION, Held
from spatl.sealed_files import StoredTensor, as_tensor, read_sealed, seal, unseal, write_sealed

FORMAT = 7

_LARGE_BYTES = 1 << 22

_HELD = "held/"

_OWN = "own/"

_FEEDBACK = "feedback/"

_PENDING_FEEDBACK = "pending_feedback/"


_MOST_FACTORS = 8


@dataclass(frozen=True, eq=False)
class Unfaded:
    """A control variate as it was folded in, and by what it has faded since, so that it is written once.

    Attributes:
        values: float32 [P], which nobody writes into.
        factors: By what they are multiplied, one after another.
    """

    values: Tensor
    factors: tuple[float, ...]

    def faded(self) -> Tensor:
        """Return the control variate, float32 [P]: the numbers that fading step by step has made of it."""
        control = self.values
        for factor in self.factors:
            control = control * factor
        return control

    def by(self, factor: float) -> "Unfaded | None":
        """Return the same, faded once more; None after so many times that it is better written anew."""
        if factor == 1.0:
            return self
        return Unfaded(self.values, (*self.factors, factor)) if len(self.factors) < _MOST_FACTORS else None


@dataclass(frozen=True, eq=False)
class ClientState:
    """A client's state at the end of a round.

    Attributes:
        private: The predictor and whatever else of the model is not shared, by the model's names; empty at first.
        control: float32 [P], c_i, or FedDyn's g_i, as of `control_round`, without the pending update. Of a large
            encoder it stays in its file until it is needed; so does the pending one. One number, and in the state that
            a round gets that number for each entry, where gradients are not corrected.
        unfaded: What `control` has faded from, which is kept in its place; None where it is kept itself.
        control_round: The server round that `control` belongs to; it fades with every later one.
        folded_round: The last round whose update is part of `control`; 0 for none.
        pending_round: The round whose update is under way, or 0.
        pending_control: float32 [P], c_i of that round if the server folds the update in; empty where it is `control`.
        selector: What the selector keeps.
        held: The versions of the server's encoder that the client holds.
        own_model: All of a model that the client keeps for itself, by the model's names; empty of most methods, and
            before the first round (`spatl.rounds.own_model`).
        feedback: What the uplink's codec lost of this client's updates, without the pending one; None of a codec that
            does not feed that back, and before the first round.
        pending_feedback: The same once the server has folded the pending update in; None where there is none.
        answered: The question whose answer is kept beside the state, as hexadecimal digits; empty for none.
    """

    private: Mapping[str, Tensor]
    control: Tensor | StoredTensor
    control_round: int = 0
    folded_round: int = 0
    pending_round: int = 0
    pending_control: Tensor | StoredTensor = field(default_factory=lambda: torch.zeros(0))
    selector: Mapping[str, Tensor] = field(default_factory=dict)
    held: Held = field(default_factory=lambda: Held({}))
    own_model: Mapping[str, Tensor] = field(default_factory=dict)
    feedback: Feedback | None = None
    pending_feedback: Feedback | None = None
    answered: str = ""
    unfaded: Unfaded | None = None

    @classmethod
    def initial(cls, layout: EncoderLayout) -> Self:
        """The state of a client that never trained: c_i = 0."""
        return cls(private={}, control=torch.zeros(layout.num_parameter_entries))

    def has_control_of(self, acknowledged_round: int) -> bool:
        """Return whether c_i is the one that the server's c contains, or it contains none of this client."""
        return acknowledged_round in (0, self.folded_round, self.pending_round)

    def settle(self, *, acknowledged_round: int, server_round: int, half_life: float | None) -> "ClientState":
        """Commit or drop the pending update, what its codec lost with it, and let c_i fade to the present.

        Args:
            acknowledged_round: The last round of this client that the server folded in; the pending update is
                committed if it is of that round. 0 for none: c_i is 0.
            server_round: The present.
            half_life: Rounds in which control variates fade to a half, or None.
        """
        folded = self.pending_round != 0 and acknowledged_round == self.pending_round
        control, unfaded = self.control, self.unfaded
        if folded and self.pending_control.shape.numel():
            control, unfaded = self.pending_control, None
        if acknowledged_round == 0 and self.folded_round:
            control, unfaded = torch.zeros(control.shape), None
        fade = fading(half_life, server_round - self.control_round if self.control_round else 0)
        if isinstance(control, StoredTensor):  # which nobody else has
            control = control.read().mul_(fade)
        elif fade != 1.0:
            if unfaded is None and control.nbytes <= _LARGE_BYTES:
                unfaded = Unfaded(control, ())
            control, unfaded = control * fade, None if unfaded is None else unfaded.by(fade)
        return replace(
            self,
            control=control,
            unfaded=unfaded,
            control_round=server_round,
            folded_round=acknowledged_round if folded or acknowledged_round == 0 else self.folded_round,
            pending_round=0,
            pending_control=torch.zeros(0),
            feedback=self.pending_feedback if folded and self.pending_feedback is not None else self.feedback,
            pending_feedback=None,
        )

    def to_bytes(self) -> bytes:
        """Serialise the state."""
        return seal(*self.content(), version=FORMAT)

    def write(self, path: Path, *, synced: bool = True) -> None:
        """Write what `to_bytes` returns to a file, some of it at a time; if `synced`, wait until the disk has it."""
        write_sealed(path, *self.content(), version=FORMAT, synced=synced)

    def content(self) -> tuple[dict[str, Tensor | StoredTensor], dict[str, Any]]:
        """All that it is: tensors, and a header of JSON values."""
        tensors: dict[str, Tensor | StoredTensor] = {
            "control": _one_if_alike(self.control) if self.unfaded is None else self.unfaded.values,
            "pending_control": self.pending_control,
            **{f"private/{name}": tensor for name, tensor in self.private.items()},
            **{f"selector/{name}": tensor for name, tensor in self.selector.items()},
            **{f"{_OWN}{name}": tensor for name, tensor in self.own_model.items()},
            **{f"{_HELD}{version}": tensor for version, tensor in self.held.offsets.items()},
            **_named(_FEEDBACK, self.feedback),
            **_named(_PENDING_FEEDBACK, self.pending_feedback),
        }
        if self.held.base is not None:
            tensors["base"] = self.held.base
        if self.held.control is not None:
            tensors["held_control"] = self.held.control
        header = {
            "control_round": self.control_round, "folded_round": self.folded_round,
            "pending_round": self.pending_round, "answered": self.answered,
            "control_version": self.held.control_version,
            "faded_by": [] if self.unfaded is None else list(self.unfaded.factors),
        }  # fmt: skip
        return tensors, header

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            DamagedState: The bytes are damaged.
            SpatlError: They are of another format.
        """
        return cls.of_content(*unseal(data, version=FORMAT, what="the client's state"))

    @classmethod
    def read(cls, path: Path, *, known: tuple[int, ...] | None = None) -> Self:
        """Read what `write` wrote, but for the versions of the encoder, which stay in the file until they are needed.

        Args:
            path: The file.
            known: As of `spatl.sealed_files.read_sealed`.

        Raises:
            FileNotFoundError: It is not there.
            DamagedState: It is damaged.
            SpatlError: It is of another format.
        """
        return cls.of_content(*read_sealed(path, version=FORMAT, what="the client's state", known=known))

    @classmethod
    def of_content(cls, tensors: Mapping[str, Tensor | StoredTensor], header: Mapping[str, Any]) -> Self:
        """The state of a content."""
        control, factors = _when_needed(tensors["control"]), tuple(header["faded_by"])
        unfaded = Unfaded(as_tensor(control), factors) if factors else None
        return cls(
            private=_below("private/", tensors),
            control=control if unfaded is None else unfaded.faded(),
            unfaded=unfaded,
            control_round=header["control_round"],
            folded_round=header["folded_round"],
            pending_round=header["pending_round"],
            pending_control=_when_needed(tensors["pending_control"]),
            selector=_below("selector/", tensors),
            held=Held(
                {int(name.removeprefix(_HELD)): each for name, each in tensors.items() if name.startswith(_HELD)},
                as_tensor(tensors["base"]) if "base" in tensors else None,
                _when_needed(tensors["held_control"]) if "held_control" in tensors else None,
                header.get("control_version", UNKNOWN_VERSION),
            ),
            own_model=_below(_OWN, tensors),
            feedback=_feedback(_FEEDBACK, tensors),
            pending_feedback=_feedback(_PENDING_FEEDBACK, tensors),
            answered=header["answered"],
        )


def _one_if_alike(control: Tensor | StoredTensor) -> Tensor | StoredTensor:
    """c_i as it is; one number where that is all there is of it, for a method that corrects nothing."""
    return control[:1] if isinstance(control, Tensor) and control.stride() == (0,) else control


def _when_needed(tensor: Tensor | StoredTensor) -> Tensor | StoredTensor:
    """A tensor as it is, if it is large, to be read when it is needed; else read."""
    return tensor if isinstance(tensor, StoredTensor) and tensor.num_bytes > _LARGE_BYTES else as_tensor(tensor)


def _below(prefix: str, tensors: Mapping[str, Tensor | StoredTensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): as_tensor(tensor) for name, tensor in tensors.items() if name.startswith(prefix)}


def _named(prefix: str, feedback: Feedback | None) -> dict[str, Tensor]:
    return {} if feedback is None else {f"{prefix}residual": feedback.residual, f"{prefix}memory": feedback.memory}


def _feedback(prefix: str, tensors: Mapping[str, Tensor | StoredTensor]) -> Feedback | None:
    found = _below(prefix, tensors)
    return Feedback(found["residual"], found["memory"]) if found else None
