"""Optimizers of local training: PyTorch's own formulas, made anew for every round, so that nothing of them is kept.

Their functions, because their classes import PyTorch's compiler, which takes longer than all that a device imports
otherwise, and every message of a deployment starts a process.
"""

from collections.abc import Mapping
from typing import Final, Protocol

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from spatl.training.step_weight import OptimizerName, TrainingSettings


class Optimizer(Protocol):
    """Optimizer of one local run."""

    def step_(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Take one step, in place, on the parameters that have a gradient."""


class SGD:
    """PyTorch's SGD, with momentum, Nesterov's or not, and weight decay; the operations of `sgd`, on lists of tensors.

    Gradients are changed in place: nobody reads them after a step, and a copy would be as large as the model.

    Args:
        settings: The learning rate, the momentum, the weight decay.
        velocities: Of each parameter, where they are kept elsewhere; they change in place, from zeros.
    """

    def __init__(self, settings: TrainingSettings, velocities: Mapping[str, Tensor] | None = None) -> None:
        self._settings = settings
        self._velocities = dict(velocities or {})

    @torch.no_grad()
    def step_(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Take one step, in place, on the parameters that have a gradient."""
        settings, found = self._settings, gradients_of(parameters)
        if not found:
            return
        moved: list[Tensor] = [parameters[name] for name in found]
        gradients = list(found.values())
        if settings.weight_decay:
            torch._foreach_add_(gradients, moved, alpha=settings.weight_decay)
        directions = gradients
        if settings.momentum:
            started = [name for name in found if name in self._velocities]
            if started:
                velocities = [self._velocities[name] for name in started]
                torch._foreach_mul_(velocities, settings.momentum)
                torch._foreach_add_(velocities, [found[name] for name in started])
            for name in found.keys() - self._velocities.keys():
                self._velocities[name] = found[name].detach().clone()
            directions = [self._velocities[name] for name in found]
            if settings.nesterov:
                torch._foreach_add_(gradients, directions, alpha=settings.momentum)
                directions = gradients
        torch._foreach_add_(moved, directions, alpha=-settings.learning_rate)


class _Adam:
    """PyTorch's Adam, or its AdamW, whose weight decay is no part of the gradient."""

    def __init__(self, settings: TrainingSettings) -> None:
        self._settings = settings
        self._moments: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    @torch.no_grad()
    def step_(self, parameters: Mapping[str, nn.Parameter]) -> None:
        gradients = gradients_of(parameters)
        for name in gradients.keys() - self._moments.keys():
            parameter = parameters[name]
            self._moments[name] = torch.zeros_like(parameter), torch.zeros_like(parameter), torch.zeros(())
        moments = [self._moments[name] for name in gradients]
        adam(
            [parameters[name] for name in gradients],
            list(gradients.values()),
            [each[0] for each in moments],
            [each[1] for each in moments],
            [],
            [each[2] for each in moments],
            decoupled_weight_decay=self._settings.optimizer == "adamw",
            amsgrad=False,
            beta1=self._settings.beta_1,
            beta2=self._settings.beta_2,
            lr=self._settings.learning_rate,
            weight_decay=self._settings.weight_decay,
            eps=self._settings.epsilon,
            maximize=False,
        )


_OPTIMIZERS: Final[Mapping[OptimizerName, type[SGD] | type[_Adam]]] = {"sgd": SGD, "adam": _Adam, "adamw": _Adam}


def make_optimizer(settings: TrainingSettings) -> Optimizer:
    """Return a new optimizer, as `training.optimizer` says."""
    return _OPTIMIZERS[settings.optimizer](settings)


def clip_gradients_(parameters: Mapping[str, nn.Parameter], most: float | None) -> None:
    """Scale all gradients down, in place, where they are longer than `most` as one vector (L2 norm); never for None.

    Pascanu et al. 2013, arXiv 1211.5063, algorithm 1; PyTorch's `clip_grad_norm_`.
    """
    if most is not None:
        nn.utils.clip_grad_norm_(list(parameters.values()), most)


def gradients_of(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the gradients that there are, by name."""
    return {name: each.grad for name, each in parameters.items() if each.grad is not None}
