"""Section on the local training of a client in one round."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from spatl.config.sections import Count, Momentum, Positive, Ratio, Section, not_a_switch, one_of
from spatl.training.augmentations import AUGMENTATION_DOOR, AUGMENTATIONS
from spatl.training.schedule import ScheduleName, rate_factor
from spatl.training.step_weight import OptimizerName

OPTIMIZER_DEFAULTS: Final[Mapping[str, Mapping[str, float]]] = {
    "adam": {"learning_rate": 1e-3}, "adamw": {"learning_rate": 1e-3, "weight_decay": 1e-2},
}  # fmt: skip
"""PyTorch's, which go with an optimizer where a config says nothing else."""


class ClientTraining(Section):
    """Local training of a single client, as far as it differs from that of the others."""

    learning_rate: Positive | None = None
    local_epochs: Count | None = None
    local_steps: Count | None = None
    batch_size: Count | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.local_epochs is not None and self.local_steps is not None:
            raise ValueError("set one of local_epochs and local_steps, got both")
        if not self.own():
            raise ValueError(f"set one of {', '.join(ClientTraining.model_fields)}")
        return self

    def own(self) -> dict[str, Any]:
        """Return the settings of `training` that are the client's own, by name."""
        given = {name: value for name, value in self if value is not None}
        return {**given, "local_steps": None} if self.local_epochs is not None else given


class TrainingConfig(Section):
    """Local training of a client in one round."""

    local_epochs: Count = 2
    """Passes over the client's training split."""
    local_steps: Count | None = None
    """Optimizer steps instead of epochs."""
    batch_size: Count = 32
    """Examples per step."""
    optimizer: OptimizerName = "sgd"
    """What takes the steps, with PyTorch's formulas and defaults; made anew in every round. Control variates follow
    from updates that are sums of gradients, which those of `adam` and `adamw` are not: methods that have them need
    `sgd`."""
    learning_rate: Positive = 0.1
    """Of the optimizer; 0.001 of `adam` and `adamw` where none is given. Tuned on validation splits for the digits'
    CNN, where every method but SCAFFOLD (its row has its own) was best here; networks with BatchNorm bear more
    (`spatl bench --tune`)."""
    momentum: Momentum = 0.0
    """Of SGD."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of the optimizer; 0.01 of `adamw` where none is given."""
    nesterov: bool = False
    """Whether the momentum is Nesterov's."""
    beta_1: Momentum = 0.9
    """Of `adam` and `adamw`: how much of the mean gradient is kept in a step."""
    beta_2: Momentum = 0.999
    """Likewise, of the mean square."""
    epsilon: Positive = 1e-8
    """Likewise: what is added to the root of the mean square."""
    clip_gradients: Positive | None = None
    """The longest that the gradient of the loss may be in a step, all trained parameters as one vector (L2); a longer
    one is scaled down to it, before a method corrects or pulls it. Null for any."""
    augmentation: tuple[str, ...] = ()
    """What is done to the inputs of each training batch, one after the other: `crop` (images moved by up to an eighth
    of their sides), `flip` (mirrored by even chances), `noise` (of a tenth of a deviation), or
    `package.module:augment`. Drawn from the seed; nothing else than training sees it."""
    schedule: ScheduleName = "constant"
    """The learning rate by round: `step` multiplies it every `step_rounds` by `step_factor`; `cosine` lets it fall
    along half a cosine, to 0 after the last round. Every device computes it from the round and `rounds`. Training
    before an evaluation (`finetune_epochs`) is at the full rate."""
    warmup_rounds: Annotated[int, BeforeValidator(not_a_switch), Field(ge=0)] = 0
    """Rounds in which the rate rises, by equal steps, before the schedule begins with the full one."""
    step_rounds: Count = 10
    """Rounds after each of which `schedule: step` multiplies the rate."""
    step_factor: Ratio = 0.1
    """What it multiplies it by."""
    clients: dict[Annotated[int, Field(ge=0)], ClientTraining] = Field(default_factory=dict)
    """What differs for single clients, by partition id: `learning_rate`, `local_epochs` or `local_steps`, `batch_size`.
    Every side knows it, as a client's steps are checked."""
    proximal_mu: Annotated[float, Field(ge=0)] = 0.01
    """FedProx's pull towards the server's weights; only methods with a pull read it."""
    dynamic_alpha: Positive = 0.1
    """FedDyn's alpha: the pull towards the server's weights, and what the linear term moves by; only methods with such
    a term read it. Chosen on validation splits (docs/methods.md)."""
    personal_pull: Positive = 1.0
    """Ditto's lambda: the pull of a client's own model towards the server's; only methods with such models read it."""
    contrast_weight: Positive = 1.0
    """MOON's mu: the weight of its loss on representations; only methods with such a loss read it."""
    contrast_temperature: Positive = 0.5
    """MOON's tau, which the similarities of representations are divided by."""
    head_epochs: Count = 2
    """Passes that train the predictor alone, before those that train the encoder; only methods that do so read it."""
    finetune_epochs: Count = 1
    """Passes over the training split before an evaluation; only methods that fine-tune read it."""
    batch_norm: Literal["local", "shared", "aggregated"] = "aggregated"
    """Whose running statistics a client uses: its own (`local`), an average that travels in every round (`shared`), or
    its own in the rounds and, after the last one, those of all clients' data, which leave with the model
    (`aggregated`)."""
    calibration_examples: Count | None = None
    """Training examples that a client estimates its own statistics on whenever it is evaluated, the first of its split,
    which is in a random order; null for all. Those of all clients' data, after the last round, are of all examples."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    precision: Literal["float32", "bf16"] = "float32"
    """`bf16` runs the forward pass under bfloat16 autocast."""
    memory_format: Literal["contiguous", "channels-last"] = "contiguous"
    """How images and the filters that read them lie in memory while a client works. With `channels-last` ResNets train
    faster on CPUs; sums are taken in another order, so that numbers differ in their last digits (docs/performance.md).
    The model that leaves a run is `contiguous` in any case."""
    group_size: Annotated[int, BeforeValidator(not_a_switch), Field(ge=1, le=256)] = 1
    """Clients that train as one program under `engine: inline`, in the process of the server: small networks take less
    time side by side. Sums are taken in another order, so that numbers differ in their last digits from those of
    another size; who asks for so many gets the same ones each time. 1 trains one client after another
    (docs/performance.md)."""
    threads: Count = 1
    """CPU threads of one client; part of what makes two runs equal to the bit."""

    @model_validator(mode="before")
    @classmethod
    def _with_the_optimizers_own(cls, values: Any) -> Any:
        """Fill in PyTorch's defaults of an optimizer where nothing else is said."""
        if not isinstance(values, Mapping):
            return values
        return {**OPTIMIZER_DEFAULTS.get(str(values.get("optimizer")), {}), **values}

    @field_validator("device")
    @classmethod
    def _device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise ValueError("must be auto, cpu, cuda, cuda:N or mps")
        return device

    @field_validator("augmentation", mode="before")
    @classmethod
    def _one_or_several(cls, names: Any) -> Any:
        return [names] if isinstance(names, str) else names

    @field_validator("augmentation")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(one_of(name, AUGMENTATIONS, door=AUGMENTATION_DOOR) for name in names)

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum > 0")
        return self

    def of_client(self, client: int) -> Self:
        """Return the section as it is for one client."""
        return self.model_copy(update=self.clients[client].own()) if client in self.clients else self

    def in_round(self, server_round: int, num_rounds: int) -> Self:
        """Return the section with the learning rate of one round of so many."""
        factor = rate_factor(self, server_round, num_rounds)
        return self if factor == 1.0 else self.model_copy(update={"learning_rate": self.learning_rate * factor})
