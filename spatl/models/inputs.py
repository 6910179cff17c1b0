"""Inputs as a network takes them: in float32, as all data are, or the dtype of its own; several as keywords."""

from typing import Any

import torch
from torch import Tensor, nn

from spatl.models.copies import duplicate
from spatl.tensors.inputs import Inputs, NamedInputs


def take_inputs_(model: nn.Module, inputs: Inputs) -> Any:
    """Return the output of a network on inputs, in eval mode, after making it take their dtype and their names.

    Of several inputs with names, `forward` gets each as a keyword: a hook is left on the network for that.

    One that fails on float32 and has parameters of another dtype is tried in that one; if it runs then, a hook is left
    on it, in place, that casts whatever it is called with from now on.

    Args:
        model: The network; only a copy of it is run.
        inputs: `[B, ...]`.

    Raises:
        ModelError: The network cannot be copied.
        Exception: Whatever it raised on float32.
    """
    if isinstance(inputs, NamedInputs):
        model.register_forward_pre_hook(NamesAsKeywords(), with_kwargs=True, prepend=True)
    try:
        return _output(model, inputs)
    except Exception:
        if isinstance(inputs, NamedInputs):
            raise
        others = {p.dtype: None for p in model.parameters() if p.is_floating_point() and p.dtype != torch.float32}
        for dtype in others:
            handle = model.register_forward_pre_hook(CastInputs(dtype))
            try:
                return _output(model, inputs)
            except Exception:
                handle.remove()
        raise


class NamesAsKeywords:
    """Forward hook that gives a network several inputs with names as keywords."""

    def __call__(
        self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments and keywords to use."""
        if len(inputs) == 1 and isinstance(inputs[0], NamedInputs):
            return (), {**inputs[0], **named}
        return inputs, named


class CastInputs:
    """Forward hook that gives a network the floating-point tensors among its arguments in one dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments to use."""
        return tuple(
            each.to(self.dtype) if isinstance(each, Tensor) and each.is_floating_point() else each for each in inputs
        )


def _output(model: nn.Module, inputs: Inputs) -> Any:
    with torch.no_grad():
        return duplicate(model).eval()(inputs)
