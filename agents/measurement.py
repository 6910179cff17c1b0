"""Measurement of a selection: the accuracy of the encoder it leaves, on examples that were not trained on.

Two questions can be asked. `pruned`: how accurate is the network that has the selected channels only (the paper's
reward, section 4.3.1)? `sent`: how accurate is the network when the server's weights take over the selected channels
of the client's update and nothing else - what would the bytes that travel be worth if this client were alone?
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from spatl.channels.layout import EncoderLayout
from spatl.channels.masking import masked_weights
from spatl.channels.selection import Selection
from spatl.channels.trace import EncoderTrace
from spatl.data import Examples
from spatl.tasks.task import CLASSIFICATION, Task
from spatl.training.evaluate import Evaluation, forward_with_batch_statistics

_LOSS_WEIGHT: Final = 0.2
_LARGEST_LOSS_DIFFERENCE: Final = 2.0


@dataclass(frozen=True, eq=False)
class Outcome(Evaluation):
    """Outcome of a trial.

    Attributes:
        accuracy: Of a task that is no classification its score, more being better (`Task.merits`).
        scores: float64 [n], each example's part in the reward: whether it was classified correctly, or its part in the
            score, less a fifth of its loss.
    """

    scores: Tensor

    def advantage(self, prior: "Outcome") -> float:
        """Return the advantage over the prior: the mean paired difference, less its standard error.

        The same few examples choose the best of several selections and say how good it is: the difference that such a
        choice finds by chance alone is of the size of its standard error.
        """
        differences = self.scores - prior.scores
        if not bool(differences.isfinite().all()):
            return -math.inf
        if not bool(differences.any()):
            return 0.0
        return float(differences.mean() - differences.std() / math.sqrt(len(differences)))


Trial = Callable[[Selection], Outcome]


def pruned_trial(model: nn.Module, trace: EncoderTrace, examples: Examples, *, task: Task = CLASSIFICATION) -> Trial:
    """Return the trial of the encoder without the channels that were not selected.

    Args:
        model: The network; trials leave it as it was.
        trace: Its channels.
        examples: At least two, on the model's device; one batch, whose own statistics BatchNorm uses.
        task: What their targets are for.
    """
    return lambda selection: _measure(model, masked_weights(model, trace.readers, selection), examples, task)


def sent_trial(
    model: nn.Module, layout: EncoderLayout, *, trained: Tensor, update: Tensor, examples: Examples,
    task: Task = CLASSIFICATION,
) -> Trial:  # fmt: skip
    """Return the trial of the encoder as received plus what was selected of the update (x + m D).

    Args:
        model: The network after local training; trials leave it as it was.
        layout: Its encoder.
        trained: float32 [N], y.
        update: float32 [N], y - x.
        examples: At least two, on the model's device.
        task: What their targets are for.
    """

    def trial(selection: Selection) -> Outcome:
        weights = torch.empty_like(trained)
        for part, kept in selection.parts(layout):
            received = trained[part] - update[part]
            sent = received + update[part]
            weights[part] = sent if kept is None else torch.where(kept, sent, received)
        device = examples.inputs.device
        views = {name: view.to(device) for name, view in layout.unflatten(weights).items()}
        return _measure(model, views, examples, task)

    return trial


def _measure(model: nn.Module, replaced: Mapping[str, Tensor], examples: Examples, task: Task) -> Outcome:
    outputs = forward_with_batch_statistics(model, examples.inputs, replaced)
    losses = task.loss.each(outputs, examples.targets).cpu().double()
    score, parts = task.merits(outputs, examples.targets)
    loss = float(task.loss.mean(outputs, examples.targets))
    return Outcome(score, loss, parts - _LOSS_WEIGHT * losses)


def reward(found: Evaluation, prior: Evaluation) -> float:
    """Return the reward of a selection: its gain over the prior in accuracy or score, and a fifth of that in the loss.

    The loss tells selections apart that classify the same few examples correctly; its part is at most 0.4.
    """
    if not math.isfinite(found.loss):
        difference = -_LARGEST_LOSS_DIFFERENCE
    elif not math.isfinite(prior.loss):
        difference = _LARGEST_LOSS_DIFFERENCE
    else:
        difference = max(-_LARGEST_LOSS_DIFFERENCE, min(_LARGEST_LOSS_DIFFERENCE, prior.loss - found.loss))
    return found.accuracy - prior.accuracy + _LOSS_WEIGHT * difference
