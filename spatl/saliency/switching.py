"""Filters switched off: their weights at zero, for each example others (arXiv 2108.01335).

A filter with weights of zero gives its bias on every input. Its channel is therefore replaced by its bias, which takes
one pass for a whole batch whose examples have different filters off, and no weight is touched.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spatl.errors import ModelError
from spatl.saliency.filters import LINEAR, FilterLayer, Filters
from spatl.saliency.profiles import in_eval_mode

_CHUNK = 256


def logits_without(model: nn.Module, images: Tensor, filters: Filters, off: Tensor) -> Tensor:
    """Return float32 [N, K] on the CPU: the logits of each example without its own filters; the network stays as it is.

    Args:
        model: The network; taken in eval mode.
        images: float32 [N, C, H, W], on the network's device.
        filters: Of the network.
        off: bool [N, F], the filters of each example that are off; or [F], the same ones for all.

    Raises:
        ModelError: A layer is gone through with another batch than the network's, so that its filters cannot differ
            by example.
    """
    off = off.expand(len(images), filters.num_filters)
    found = list[Tensor]()
    with in_eval_mode(model), torch.no_grad():
        for start in range(0, len(images), _CHUNK):
            part = slice(start, start + _CHUNK)
            with _switched_off(model, filters, off[part].to(images.device)):
                found.append(model(images[part]).float().cpu())
    return torch.cat(found)


@contextmanager
def _switched_off(model: nn.Module, filters: Filters, off: Tensor) -> Iterator[None]:
    """Switch filters off inside the block: those in bool [N, F], for batches of N."""
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        for layer in filters.layers:
            own = off[:, layer.places]
            if bool(own.any()):
                handle = modules[layer.name].register_forward_hook(_Off(layer, own))
                stack.callback(handle.remove)
        yield


class _Off:
    """Forward hook of a layer that puts the bias in place of channels: those in bool [N, channels]."""

    def __init__(self, layer: FilterLayer, off: Tensor) -> None:
        self._layer, self._off = layer, off

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        off = self._off
        if len(output) != len(off):
            raise ModelError(
                f"layer {self._layer.name!r} is gone through with a batch of {len(output)} where the network has one "
                f"of {len(off)}: its filters cannot be switched off for single examples"
            )
        # A linear layer has its channels last, all others after the batch.
        place = output.dim() - 1 if self._layer.kind == LINEAR else 1
        shape = [len(off)] + [1] * (output.dim() - 1)
        shape[place] = off.shape[1]
        bias = module._parameters.get("bias")
        flat = [1] * output.dim()
        flat[place] = off.shape[1]
        rest = torch.zeros(flat, device=output.device) if bias is None else bias.detach().reshape(flat)
        return torch.where(off.reshape(shape), rest.to(output.dtype), output)
