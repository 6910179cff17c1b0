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
import torch.nn.functional as F
from torch import Tensor, nn

from spatl.channels.layout import EncoderLayout
from spatl.channels.masking import masked_weights
from spatl.channels.selection import Selection
from spatl.channels.trace import EncoderTrace
from spatl.data import Examples
from spatl.training.evaluate import Evaluation, forward_with_batch_statistics

_LOSS_WEIGHT: Final = 0.2
_LARGEST_LOSS_DIFFERENCE: Final = 2.0


@dataclass(frozen=True, eq=False)
class Outcome(Evaluation):
    """Outcome of a trial.

    Attributes:
        scores: float64 [n], each example's part in the reward: whether it was classified correctly, less a fifth of
            its cross-entropy.
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


def pruned_trial(model: nn.Module, trace: EncoderTrace, examples: Examples) -> Trial:
    """Return the trial of the encoder without the channels that were not selected.

    Args:
        model: The network; trials leave it as it was.
        trace: Its channels.
        examples: At least two, on the model's device; one batch, whose own statistics BatchNorm uses.
    """
    return lambda selection: _measure(model, masked_weights(model, trace.readers, selection), examples)


def sent_trial(
    model: nn.Module, layout: EncoderLayout, *, trained: Tensor, update: Tensor, examples: Examples
) -> Trial:
    """Return the trial of the encoder as received plus what was selected of the update (x + m D).

    Args:
        model: The network after local training; trials leave it as it was.
        layout: Its encoder.
        trained: float32 [N], y.
        update: float32 [N], y - x.
        examples: At least two, on the model's device.
    """

    def trial(selection: Selection) -> Outcome:
        weights = torch.empty_like(trained)
        for part, kept in selection.parts(layout):
            received = trained[part] - update[part]
            sent = received + update[part]
            weights[part] = sent if kept is None else torch.where(kept, sent, received)
        device = examples.inputs.device
        return _measure(model, {name: view.to(device) for name, view in layout.unflatten(weights).items()}, examples)

    return trial


def _measure(model: nn.Module, replaced: Mapping[str, Tensor], examples: Examples) -> Outcome:
    logits = forward_with_batch_statistics(model, examples.inputs, replaced)
    correct = logits.argmax(1) == examples.targets
    losses = F.cross_entropy(logits, examples.targets, reduction="none").cpu().double()
    accuracy, loss = int(correct.sum()) / len(examples), float(F.cross_entropy(logits, examples.targets))
    return Outcome(accuracy, loss, correct.cpu().double() - _LOSS_WEIGHT * losses)


def reward(found: Evaluation, prior: Evaluation) -> float:
    """Return the reward of a selection: its gain over the prior in accuracy, and a fifth of that in cross-entropy.

    The cross-entropy tells selections apart that classify the same few examples correctly; its part is at most 0.4.
    """
    if not math.isfinite(found.loss):
        difference = -_LARGEST_LOSS_DIFFERENCE
    elif not math.isfinite(prior.loss):
        difference = _LARGEST_LOSS_DIFFERENCE
    else:
        difference = max(-_LARGEST_LOSS_DIFFERENCE, min(_LARGEST_LOSS_DIFFERENCE, prior.loss - found.loss))
    return found.accuracy - prior.accuracy + _LOSS_WEIGHT * difference
