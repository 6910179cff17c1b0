"""Evaluation that leaves a model as it found it, and BatchNorm statistics re-estimated for a new encoder."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from spatl.data import Examples
from spatl.models.copies import attributes_kept
from spatl.models.frozen import keeps_statistics, modes_kept, set_mode_, train_mode_
from spatl.tasks.task import CLASSIFICATION, Measure, Tally, Task
from spatl.tensors.inputs import Inputs
from spatl.training.local import autocast

_CHUNK = 1024


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of a model on some examples.

    Attributes:
        accuracy: The share that is classified correctly; of other tasks their score, which is NaN where it is not
            defined. NaN of no examples.
        loss: The mean loss; likewise.
        measures: Of each metric of the task, the first of which is the score.
        num_examples: How many there were.
    """

    accuracy: float
    loss: float
    measures: tuple[Measure, ...] = field(default=(), compare=False, kw_only=True)
    num_examples: int = field(default=1, compare=False, kw_only=True)

    @property
    def is_known(self) -> bool:
        """Return whether there were examples."""
        return self.num_examples > 0


NOT_EVALUATED: Final = Evaluation(math.nan, math.nan, num_examples=0)
"""Evaluation of a model on no examples."""


def evaluate(
    model: nn.Module, examples: Examples, *, task: Task = CLASSIFICATION, precision: str = "float32"
) -> Evaluation:
    """Evaluate a model in eval mode without gradients; its mode is restored afterwards.

    Args:
        model: The network, on the device of the examples.
        examples: Any number of them.
        task: What the targets are for, and what a model is judged by.
        precision: As of `TrainingSettings`.
    """
    if not len(examples):
        return NOT_EVALUATED
    loss, tally = torch.zeros((), device=examples.inputs.device), Tally(task)
    chunk = task.chunk(_CHUNK, examples.targets)
    with modes_kept(model), torch.no_grad(), autocast(examples.inputs.device, precision):
        set_mode_(model, training=False)
        for start in range(0, len(examples), chunk):
            targets = examples.targets[start : start + chunk]
            outputs = model(examples.inputs[start : start + chunk]).float()
            tally.add(outputs, targets)
            loss += task.loss.total(outputs, targets)
    measures = tally.measures()
    mean = float(loss) / max(1, task.loss.num_terms(examples.targets))
    return Evaluation(measures[0].value, mean, measures=measures, num_examples=len(examples))


def recalibrate_(model: nn.Module, examples: Examples, *, batch_size: int, most: int | None = None) -> None:
    """Re-estimate BatchNorm's running statistics as plain averages over one pass; weights and modes are untouched.

    Layers that are frozen keep theirs (`spatl.models.frozen`). Statistics gathered under other weights misjudge an
    encoder that has just been replaced. The examples are cut into batches of equal size, as near as can be to
    `batch_size` and never of a single example, which has no variance: one that is alone is taken twice. Of more
    examples than `most` the first ones are taken; None for all.
    """
    if most is not None and len(examples) > most:
        examples = Examples(examples.inputs[:most], examples.targets[:most])
    if len(examples) == 1:
        examples = examples.at(torch.tensor([0, 0], device=examples.targets.device))
    layers = [m for m in _moving_batch_norms(model) if m.track_running_stats and not keeps_statistics(m)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    try:
        with modes_kept(model), torch.no_grad():
            set_mode_(model, training=False)
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None
                layer.training = True
            num_batches = max(1, len(examples) // max(2, batch_size))
            for images in examples.inputs.tensor_split(num_batches):
                model(images)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def forward_with_batch_statistics(
    model: nn.Module, inputs: Inputs, replaced: Mapping[str, Tensor] | None = None, *, gradients: bool = False
) -> Tensor:
    """Return a model's logits for one batch, BatchNorm using the batch's own statistics; the model stays as it was.

    Running statistics belong to the weights they were gathered under: under a mask they put nearly every network at
    chance. All layers but BatchNorm are in eval mode, and what is frozen (`spatl.models.frozen`); what they write into
    buffers goes into copies, and plain attributes are put back.

    Args:
        model: The network.
        inputs: `[B, ...]` on the model's device; a single one is taken twice, so that there is a variance.
        replaced: Tensors to use instead of the model's own, by parameter name; they take its dtype.
        gradients: Whether the logits can be differentiated.
    """
    tensors = {name: buffer.clone() for name, buffer in model.named_buffers()}
    if replaced:
        own = dict(model.named_parameters()) | tensors
        tensors |= {name: tensor.to(own[name].dtype) for name, tensor in replaced.items()}
    batch, layers = inputs[torch.tensor([0, 0])] if len(inputs) == 1 else inputs, _moving_batch_norms(model)
    with modes_kept(model), attributes_kept(model), torch.set_grad_enabled(gradients):
        set_mode_(model, training=False)
        for layer in layers:
            layer.training = True
        logits: Tensor = functional_call(model, tensors, (batch,))
    return logits.float()[: len(inputs)]


def _moving_batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that use the batch's own statistics while the network trains."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not layers:
        return []
    with modes_kept(model):
        train_mode_(model)
        return [layer for layer in layers if layer.training]
