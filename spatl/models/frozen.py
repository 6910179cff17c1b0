"""Frozen modules: those of a network that stay in eval mode while the rest of it trains.

Three things freeze a module. It was in eval mode when its factory returned the network, whatever it is: a Dropout of
such a module drops nothing in training. Or the network's own `train()` leaves it in eval mode. Or it is a
normalisation layer whose affine parameters all have `requires_grad` off, as when a backbone was frozen whole; one
without affine parameters goes with the nearest module around it that has parameters. A frozen normalisation layer
normalises by the statistics it was given: they are not gathered in training, not estimated anew, not averaged.
PyTorch's own `model.train()` would undo the first, and has never done the third.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from torch import nn

NORMALISATION: Final = nn.modules.batchnorm._NormBase
"""Layers that may keep running statistics: BatchNorm and InstanceNorm."""

_MARK: Final = "_spatl_frozen"  # an attribute, so that every copy of the module has it


def mark_frozen_(model: nn.Module) -> list[str]:
    """Mark the modules of a network that are frozen now, on themselves, and return their names.

    Modes are as they were afterwards.
    """
    with modes_kept(model):
        left = {module for module in model.modules() if not module.training}
        model.train()
        names = []
        for name, module in model.named_modules():
            if module in left or not module.training or _is_frozen_norm(module, *_ancestors(model, name)):
                setattr(module, _MARK, True)
                names.append(name)
    return names


def is_frozen(module: nn.Module) -> bool:
    """Return whether a module stays in eval mode in training."""
    return getattr(module, _MARK, False) or _is_frozen_norm(module)


def keeps_statistics(layer: nn.Module) -> bool:
    """Return whether the running statistics of a normalisation layer never change: it is frozen, or has momentum 0."""
    return is_frozen(layer) or getattr(layer, "momentum", None) == 0


def train_mode_(model: nn.Module) -> None:
    """Put a network in training mode, all but what is frozen.

    Of a network that is in training mode as a whole, a part in eval mode is taken for frozen, marked or not.
    """
    modules = list(model.modules())
    left = {module for module in modules if not module.training} if model.training else set()
    set_mode_(model, training=True)
    for module in modules:
        if module in left or is_frozen(module):
            module.training = False


def set_mode_(model: nn.Module, *, training: bool) -> None:
    """Do what `model.train(training)` does, and touch no module that is in that mode already: setting is slow."""
    modules = list(model.modules())
    if any(type(module).train is not nn.Module.train or "train" in module.__dict__ for module in modules):
        model.train(training)
        return
    for module in modules:
        if module.training != training:
            module.training = training


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Put a network in training mode, all but what is frozen, and each module back in its own mode afterwards."""
    with modes_kept(model):
        train_mode_(model)
        yield


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put each module back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            if module.training != mode:
                module.training = mode


def _is_frozen_norm(module: nn.Module, *around: nn.Module) -> bool:
    """Return whether a normalisation layer's parameters are frozen; without any, those of the modules `around` it."""
    if not isinstance(module, NORMALISATION):
        return False
    if not around and (weight := module._parameters.get("weight")) is not None and weight.requires_grad:
        return False
    for each in (module, *around):
        trained = [parameter.requires_grad for parameter in each.parameters()]
        if trained:
            return not any(trained)
    return False


def _ancestors(model: nn.Module, name: str) -> list[nn.Module]:
    """Return the modules around one, nearest first."""
    found = []
    while name:
        name = name.rpartition(".")[0]
        found.append(model.get_submodule(name))
    return found
