"""Refinement of a network that was cut: BatchNorm statistics re-estimated, and some epochs of training if asked for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from spatl.data import Examples
from spatl.errors import ConfigError, DivergedError
from spatl.models.copies import duplicate
from spatl.seeding import generator, seeded_globals
from spatl.training.calibration import calibrated
from spatl.training.evaluate import Evaluation, evaluate, recalibrate_
from spatl.training.local import train_
from spatl.training.step_weight import TrainingSettings


@dataclass(frozen=True, eq=False)
class Refined:
    """Network after its refinement.

    Attributes:
        network: The best of the networks after each epoch, in eval mode.
        epochs: How many epochs it was trained for.
        history: Evaluations on the validation split, before training and after each epoch.
    """

    network: nn.Module
    epochs: int
    history: Sequence[Evaluation]

    @property
    def evaluation(self) -> Evaluation:
        """Evaluation of the network on the validation split."""
        return self.history[self.epochs]


def refined(
    network: nn.Module,
    train: Examples,
    validation: Examples,
    *,
    was_cut: bool,
    training: TrainingSettings | None = None,
    epochs: int = 0,
    offset: Tensor | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> Refined:
    """Re-estimate a network's BatchNorm statistics, train it, and return the best on the validation split.

    Args:
        network: The network; it stays as it was.
        train: The client's training split.
        validation: Its validation split, by whose accuracy an epoch is chosen: the first of the best, whose loss
            decides between equals.
        was_cut: Whether its weights are not those that its statistics were gathered under. Statistics of a network that
            is neither cut nor trained stay as they are.
        training: How to train, one epoch as a round does; needed for `epochs`.
        epochs: Passes over the training split.
        offset: float32 [K], added to the logits meanwhile.
        batch_size: Examples per batch of the re-estimation.
        seed: Of the order of training.

    Raises:
        ConfigError: The number of epochs is negative, or there are no settings for them.
        DivergedError: The network left the finite numbers in its first epoch.
    """
    check_epochs(epochs, training)
    current = duplicate(network).eval()
    if was_cut:
        recalibrate_(current, train, batch_size=batch_size)
    history = [evaluated(current, validation, offset)]
    best, best_epoch = current, 0
    for epoch in range(1, epochs + 1):
        assert training is not None
        current = duplicate(current)
        parameters = {name: each for name, each in current.named_parameters() if each.requires_grad}
        with calibrated(current, offset), seeded_globals(seed, "layers of a cut network", server_round=epoch):
            order = generator(seed, "batches of a cut network", server_round=epoch)
            train_(current, parameters, train, training, generator=order, epochs=1)
            recalibrate_(current, train, batch_size=batch_size)
        history.append(evaluated(current, validation, offset))
        if not math.isfinite(history[-1].loss):
            raise DivergedError(
                f"fine-tuning left the finite numbers in epoch {epoch}; lower the learning rate, or export without it"
            )
        if (history[-1].accuracy, -history[-1].loss) > (history[best_epoch].accuracy, -history[best_epoch].loss):
            best, best_epoch = current, epoch
    return Refined(best, best_epoch, history)


def check_epochs(epochs: int, training: TrainingSettings | None) -> None:
    """Raise unless there can be so many epochs of training.

    Raises:
        ConfigError: The number is negative, or there are no settings.
    """
    if epochs < 0:
        raise ConfigError(f"epochs of fine-tuning must be at least 0, got {epochs}")
    if epochs and training is None:
        raise ConfigError(f"{epochs} epochs of fine-tuning need training settings, got none")


def evaluated(network: nn.Module, examples: Examples, offset: Tensor | None) -> Evaluation:
    """Evaluate a network with an offset, float32 [K], on its logits; None for none."""
    with calibrated(network, offset):
        return evaluate(network, examples)
