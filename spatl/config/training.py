"""Section on the local training of a client in one round."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from spatl.config.sections import Count, Momentum, Positive, Section


class TrainingConfig(Section):
    """Local training of a client in one round."""

    local_epochs: Count = 2
    """Passes over the client's training split."""
    local_steps: Count | None = None
    """Optimizer steps instead of epochs."""
    batch_size: Count = 32
    """Examples per step."""
    learning_rate: Positive = 0.1
    """Of SGD. Tuned on validation splits for the digits' CNN, where every method but SCAFFOLD (its row has its own) was
    best here; networks with BatchNorm bear more (`spatl bench --tune`)."""
    momentum: Momentum = 0.0
    """Of SGD."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of SGD."""
    nesterov: bool = False
    """Whether the momentum is Nesterov's."""
    proximal_mu: Annotated[float, Field(ge=0)] = 0.01
    """FedProx's pull towards the server's weights; only methods with a pull read it."""
    head_epochs: Count = 2
    """Passes that train the predictor alone, before those that train the encoder; only methods that do so read it."""
    finetune_epochs: Count = 1
    """Passes over the training split before an evaluation; only methods that fine-tune read it."""
    batch_norm: Literal["local", "shared", "aggregated"] = "aggregated"
    """Whose running statistics a client uses: its own (`local`), an average that travels in every round (`shared`), or
    its own in the rounds and, after the last one, those of all clients' data, which leave with the model
    (`aggregated`)."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    precision: Literal["float32", "bf16"] = "float32"
    """`bf16` runs the forward pass under bfloat16 autocast."""
    threads: Count = 1
    """CPU threads of one client; part of what makes two runs equal to the bit."""

    @field_validator("device")
    @classmethod
    def _device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise ValueError("must be auto, cpu, cuda, cuda:N or mps")
        return device

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum > 0")
        return self
