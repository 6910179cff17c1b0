"""Local training of one client: it knows no federated method, only hooks on the gradients."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from spatl.data import Examples, batches
from spatl.models.frozen import training_mode
from spatl.tasks.task import CLASSIFICATION, Task
from spatl.tensors.inputs import Inputs
from spatl.training.augmentation import make_augmentation
from spatl.training.contrast import Contrast
from spatl.training.hooks import GradientHook
from spatl.training.optimizers import clip_gradients_, make_optimizer
from spatl.training.step_weight import StepWeight, TrainingSettings


@dataclass(frozen=True)
class TrainingResult:
    """Result of a local run: its mean loss per example and its accumulated step weight (a_i).

    `finite_steps` is how many steps there were before the first whose loss was not finite, and `waited` the seconds in
    which it waited for other clients.
    """

    loss: float
    step_weight: float
    num_steps: int
    finite_steps: int
    waited: float = 0.0


def train_(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    examples: Examples,
    settings: TrainingSettings,
    *,
    generator: torch.Generator,
    hooks: Sequence[GradientHook] = (),
    epochs: int | None = None,
    steps: int | None = None,
    contrast: Contrast | None = None,
    task: Task = CLASSIFICATION,
) -> TrainingResult:
    """Train a model in place on the loss of a task, in training mode; modes are restored afterwards.

    What is frozen stays in eval mode (`spatl.models.frozen`). The gradient of the loss is clipped before the hooks add
    what a method brings: with control variates c_i is then the mean clipped gradient, and g + c - c_i keeps its mean.
    Clipped after them, c_i would become c_i - c and what the clip leaves, which is no gradient at all.

    Args:
        model: The network, on the device of `examples`.
        parameters: The parameters to train, by name; all others stay as they are.
        examples: The client's training split.
        settings: How long and how fast.
        generator: Draws the order of the examples, and what augments them.
        hooks: Called in order after each backward pass.
        epochs: Passes over the split in place of the settings' epochs and steps.
        steps: Optimizer steps in place of both.
        contrast: A loss on representations that is added to that of the predictions.
        task: What the targets are for.
    """
    if epochs is None and steps is None:
        epochs, steps = settings.local_epochs, settings.local_steps
    optimizer, step_weight = make_optimizer(settings), StepWeight.of(settings)
    sums: list[Tensor] = []  # of each batch's losses; added up after the last step, which is one wait for the device
    trained, num_examples = list(parameters.values()), 0
    with training_mode(model), contextlib.nullcontext() if contrast is None else contrast.watching():
        for images, labels in stream(examples, settings, generator, epochs=epochs, steps=steps):
            for parameter in trained:
                parameter.grad = None
            with autocast(images.device, settings.precision):
                loss = task.loss.mean(wide(model(images), settings.precision), labels)
                if contrast is not None:
                    loss = loss + contrast(images)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            clip_gradients_(parameters, settings.clip_gradients)
            for hook in hooks:
                hook(parameters)
            optimizer.step_(parameters)
            step_weight.step(settings.learning_rate)
            sums.append(loss.detach().float() * len(labels))
            num_examples += len(labels)
    for parameter in trained:
        parameter.grad = None  # as large as the model, and of no use to what comes next
    total, finite_steps = added_up(sums)
    return TrainingResult(total / max(1, num_examples), step_weight.value, len(sums), finite_steps)


def added_up(terms: Sequence[Tensor]) -> tuple[float, int]:
    """Return the sum of float32 scalars, one after another, and how many there are before it is not finite."""
    total, finite = np.float32(0), 0
    with np.errstate(over="ignore", invalid="ignore"):
        for term in torch.stack(list(terms)).cpu().numpy() if terms else ():
            total = total + term
            finite += bool(np.isfinite(total))  # never again once it is not
    return float(total), finite


def wide(logits: Tensor, precision: str) -> Tensor:
    """Return logits to compute a loss of: those of a network in half precision as float32. Autocast sees to its own."""
    return logits.float() if precision == "float32" and logits.dtype in (torch.float16, torch.bfloat16) else logits


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return a bfloat16 autocast for `precision="bf16"`, and otherwise a context that does nothing."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def stream(
    examples: Examples, settings: TrainingSettings, generator: torch.Generator, *, epochs: int | None, steps: int | None
) -> Iterator[tuple[Inputs, Tensor]]:
    """Return batches of so many epochs, or of as many as `steps` takes when that is given, augmented."""
    augmentation, batch_size = make_augmentation(settings.augmentation), settings.batch_size
    passes = itertools.repeat(None) if steps is not None or epochs is None else range(epochs)
    stream = (batch for _ in passes for batch in batches(examples, batch_size=batch_size, generator=generator))
    for inputs, targets in itertools.islice(stream, steps):
        yield inputs if augmentation is None else augmentation(inputs, generator), targets
