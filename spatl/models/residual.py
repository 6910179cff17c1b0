"""Residual predictor: a shared one that all clients learn together, plus a private one that each learns alone.

The submodule of the cut is replaced by itself plus a copy of itself on the same input. The first belongs to the encoder
and travels; the second is the predictor and stays on the client. It starts at zero, so that the network is at first the
shared one, and is pulled back to zero (`predictor.shrinkage`), so that it only learns what the client's own examples
insist on. A model between a global and a local one by regularisation is that of Hanzely and Richtarik (2020, arXiv
2002.05516); adding two predictors' outputs instead of averaging parameters is ours.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spatl.errors import ModelError, told
from spatl.models.copies import duplicate
from spatl.models.split import make_split
from spatl.tensors.inputs import Inputs


class ResidualPredictor(nn.Module):
    """Sum of two predictors on one input.

    Args:
        shared: The one that all clients train.
        private: The client's own.
    """

    def __init__(self, shared: nn.Module, private: nn.Module) -> None:
        super().__init__()
        self.shared = shared
        self.private = private

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Return the sum of both predictors' logits."""
        # Not `+`, which would join two tuples and leave the private part unread.
        return torch.add(self.shared(*inputs, **named), self.private(*inputs, **named))


def add_residual_(model: nn.Module, cut: Sequence[str], example: Inputs) -> tuple[str, ...]:
    """Replace the predictor of a model by a `ResidualPredictor`, in place, and return the cut now in force.

    Args:
        model: The network, which accepts the example.
        cut: The one submodule to replace.
        example: `[B, ...]`, to see that the model's output stays what it was.

    Returns:
        The name of the private part.

    Raises:
        ModelError: The cut is not one submodule, or its output cannot be added to or starts from something else than 0.
    """
    (name,) = make_split(model, _one(cut)).cut
    shared = model.get_submodule(name)
    before = _output(model, example)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, ResidualPredictor(shared, _zero_output_copy(shared)))
    try:
        same = torch.equal(before, _output(model, example))
    except Exception as error:
        raise ModelError(_misfit(name, told(error))) from error
    if not same:
        raise ModelError(_misfit(name, "it does not return 0 when its last layer's parameters are 0"))
    return (f"{name}.private",)


def _one(cut: Sequence[str]) -> Sequence[str]:
    if len(cut) != 1:
        raise ModelError(
            f"predictor.mode residual needs a cut of one submodule, whose output it adds to; got {list(cut)} "
            "(configs: model.cut)"
        )
    return cut


def _zero_output_copy(module: nn.Module) -> nn.Module:
    """Return a copy whose last layer with parameters has zeros only."""
    silent = duplicate(module)
    layers = [layer for layer in silent.modules() if any(True for _ in layer.parameters(recurse=False))]
    with torch.no_grad():
        for parameter in layers[-1].parameters(recurse=False):
            parameter.zero_()
    return silent


def _output(model: nn.Module, example: Inputs) -> Tensor:
    with torch.no_grad():
        output: Tensor = duplicate(model).eval()(example)
    return output


def _misfit(name: str, reason: str) -> str:
    return f"predictor.mode residual does not fit the submodule {name!r}: {reason}; choose another cut or mode"
