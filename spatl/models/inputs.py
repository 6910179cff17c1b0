"""Dtype in which a network takes its images: float32, as all data are, or that of its own parameters."""

from typing import Any

import torch
from torch import Tensor, nn

from spatl.models.copies import duplicate


def take_images_(model: nn.Module, images: Tensor) -> Any:
    """Return the output of a network on images, in eval mode, after making it take their dtype.

    One that fails on float32 and has parameters of another dtype is tried in that one; if it runs then, a hook is left
    on it, in place, that casts whatever it is called with from now on.

    Args:
        model: The network; only a copy of it is run.
        images: float32 [B, C, H, W].

    Raises:
        ModelError: The network cannot be copied.
        Exception: Whatever it raised on float32.
    """
    try:
        return _output(model, images)
    except Exception:
        others = {p.dtype: None for p in model.parameters() if p.is_floating_point() and p.dtype != torch.float32}
        for dtype in others:
            handle = model.register_forward_pre_hook(CastInputs(dtype))
            try:
                return _output(model, images)
            except Exception:
                handle.remove()
        raise


class CastInputs:
    """Forward hook that gives a network the floating-point tensors among its arguments in one dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments to use."""
        return tuple(
            each.to(self.dtype) if isinstance(each, Tensor) and each.is_floating_point() else each for each in inputs
        )


def _output(model: nn.Module, images: Tensor) -> Any:
    with torch.no_grad():
        return duplicate(model).eval()(images)
