"""Accumulated step weight (a_i): what the gradients of a local run add up to in its displacement."""

from collections.abc import Sequence
from typing import Final, Literal, Protocol, Self

import numpy as np

OptimizerName = Literal["sgd", "adam", "adamw"]
"""Optimizers of local training, as `training.optimizer` names them."""
ADAPTIVE_OPTIMIZERS: Final[frozenset[OptimizerName]] = frozenset({"adam", "adamw"})
"""Those whose steps are no sums of gradients, but of directions: gradients over their own size."""

MOST_FOLLOWED: Final = 100_000
"""Steps that are followed one by one; a microsecond each."""


class TrainingSettings(Protocol):
    """Settings of local training, as the section `training` of a config has them.

    Attributes:
        local_epochs: Passes over the training split; ignored when `local_steps` is given.
        local_steps: Number of optimizer steps, or None.
        batch_size: Examples per step.
        optimizer: What takes the steps.
        learning_rate: Of the optimizer.
        momentum: Of SGD.
        weight_decay: On all trained parameters.
        nesterov: Whether momentum is Nesterov's.
        beta_1: Of Adam and AdamW.
        beta_2: Likewise.
        epsilon: Likewise.
        clip_gradients: The longest that the gradient of the loss may be, or None.
        augmentation: What is done to each batch (`spatl.training.augmentation`).
        precision: `"float32"`, or `"bf16"` for bfloat16 autocast of the forward pass.
    """

    @property
    def local_epochs(self) -> int: ...  # noqa: D102
    @property
    def local_steps(self) -> int | None: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102
    @property
    def optimizer(self) -> OptimizerName: ...  # noqa: D102
    @property
    def learning_rate(self) -> float: ...  # noqa: D102
    @property
    def momentum(self) -> float: ...  # noqa: D102
    @property
    def weight_decay(self) -> float: ...  # noqa: D102
    @property
    def nesterov(self) -> bool: ...  # noqa: D102
    @property
    def beta_1(self) -> float: ...  # noqa: D102
    @property
    def beta_2(self) -> float: ...  # noqa: D102
    @property
    def epsilon(self) -> float: ...  # noqa: D102
    @property
    def clip_gradients(self) -> float | None: ...  # noqa: D102
    @property
    def augmentation(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def precision(self) -> str: ...  # noqa: D102


def num_steps(settings: TrainingSettings, num_examples: int) -> int:
    """Return how many optimizer steps a client with so many training examples takes."""
    if settings.local_steps is not None:
        return settings.local_steps
    num_batches = -(-num_examples // settings.batch_size)
    if settings.batch_size > 1 and num_batches > 1 and num_examples % settings.batch_size == 1:
        num_batches -= 1  # `batches` merges a last batch of one into the one before it
    return settings.local_epochs * num_batches


def accumulated_step_weight(settings: TrainingSettings, num_examples: int) -> float:
    """Return a_i of a client with so many training examples: common knowledge, so that a server can check it."""
    number = num_steps(settings, num_examples)
    if number > MOST_FOLLOWED:  # a client may say that it has any number of examples
        return _closed_form(settings, number)
    weight = StepWeight.of(settings)
    for _ in range(number):
        weight.step(settings.learning_rate)
    return weight.value


def _closed_form(settings: TrainingSettings, number: int) -> float:
    """Return what so many steps of `StepWeight` come to: its recurrence is linear in (a, velocity, 1)."""
    weight, rate = StepWeight.of(settings), settings.learning_rate
    decay, momentum = weight.weight_decay, weight.momentum
    gradient = np.array([-decay, 0.0, 1.0])
    velocity = np.array([-decay, momentum, 1.0])
    moved = gradient + momentum * velocity if weight.nesterov else velocity
    step = np.array([np.array([1.0, 0.0, 0.0]) + rate * moved, velocity, [0.0, 0.0, 1.0]])
    with np.errstate(over="ignore", invalid="ignore"):  # of a training that diverges
        return float(np.linalg.matrix_power(step, number)[0, 2])


class StepWeight:
    """Accumulates a = the sum of the coefficients with which each step's gradient enters the final displacement.

    The optimizer is linear in the gradients, so `a` is how far one coordinate that starts at zero moves under a
    gradient of minus one: the recurrence of SGD with momentum, Nesterov momentum and weight decay is followed step by
    step, at each step's own learning rate (FedNova, Wang et al. 2020, section 3.1, generalised to schedules).

    Adam is not linear in its gradients, but in its directions, m / (sqrt(v) + epsilon) with both corrected for their
    start: `a` is what these add up to. They count as the gradients of plain SGD do; the weight decay of Adam is a part
    of them, that of AdamW shrinks what was reached, as in SGD without momentum.
    """

    def __init__(self, *, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False) -> None:
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.nesterov = nesterov
        self._velocity: float | None = None
        self.value = 0.0

    @classmethod
    def of(cls, settings: TrainingSettings) -> Self:
        """The step weight of a local run before its first step."""
        if settings.optimizer in ADAPTIVE_OPTIMIZERS:
            return cls(weight_decay=settings.weight_decay if settings.optimizer == "adamw" else 0.0)
        return cls(momentum=settings.momentum, weight_decay=settings.weight_decay, nesterov=settings.nesterov)

    def step(self, learning_rate: float) -> None:
        """Follow one optimizer step."""
        gradient = 1.0 - self.weight_decay * self.value
        velocity = gradient if self._velocity is None else self.momentum * self._velocity + gradient
        self._velocity = velocity
        self.value += learning_rate * (gradient + self.momentum * velocity if self.nesterov else velocity)
