"""Filters switched off: their weights at zero, for each example others (arXiv 2108.01335).

A filter with weights of zero gives its bias on every input. Its channel is therefore replaced by its bias, which takes
one pass for a whole batch whose examples have different filters off, and no weight is touched. A network whose filters
work outside their layers, too, as a weight does that two layers share, is found out before, and gets weights of zero
for each example.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spatl.errors import ModelError
from spatl.saliency.filters import LINEAR, FilterLayer, Filters
from spatl.saliency.profiles import in_eval_mode
from spatl.saliency.repair import filter_weights, logits_with

_CHUNK = 256


def logits_without(model: nn.Module, images: Tensor, filters: Filters, off: Tensor) -> Tensor:
    """Return float32 [N, K] on the CPU: the logits of each example without its own filters; the network stays as it is.

    Args:
        model: The network; taken in eval mode.
        images: float32 [N, C, H, W], on the network's device; at least one.
        filters: Of the network.
        off: bool [N, F], the filters of each example that are off; or [F], the same ones for all.

    Raises:
        ModelError: A layer is gone through with another batch than the network's, so that its filters cannot differ
            by example.
    """
    off = off.expand(len(images), filters.num_filters)
    take = _by_channels if _by_layers_alone(model, images[0], filters) else _by_weights
    parts = [slice(start, start + _CHUNK) for start in range(0, len(images), _CHUNK)]
    return torch.cat([take(model, images[part], filters, off[part]) for part in parts])


def _by_channels(model: nn.Module, images: Tensor, filters: Filters, off: Tensor) -> Tensor:
    """Return the logits of a chunk by one pass in which channels are replaced."""
    with in_eval_mode(model), torch.no_grad(), _switched_off(model, filters, off.to(images.device)):
        logits: Tensor = model(images)
    return logits.float().cpu()


def _by_weights(model: nn.Module, images: Tensor, filters: Filters, off: Tensor) -> Tensor:
    """Return the logits of a chunk by one pass for each example, with weights of zero."""
    weights, rows = filter_weights(model, filters), list[Tensor]()
    for image, own in zip(images, off.to(images.device), strict=True):
        kept = {
            layer.weight: weights[layer.weight] * layer.spread(~own[layer.places], weights[layer.weight].shape)
            for layer in filters.layers
        }
        rows.append(logits_with(model, image[None], kept))
    return torch.cat(rows).cpu()


def _by_layers_alone(model: nn.Module, image: Tensor, filters: Filters) -> bool:
    """Return whether filters reach the logits through the outputs of their own layers and no other way.

    Cut off there, nothing that leads to the logits then goes back to a weight.
    """
    modules, leaves = dict(model.named_modules()), dict[str, Tensor]()
    for name, each in filter_weights(model, filters).items():
        leaves[name] = each.requires_grad_()
    buffers = {name: each.clone() for name, each in model.named_buffers()}
    with in_eval_mode(model), torch.enable_grad(), ExitStack() as stack:
        for layer in filters.layers:
            handle = modules[layer.name].register_forward_hook(lambda module, inputs, output: output.detach())
            stack.callback(handle.remove)
        logits = functional_call(model, {**buffers, **leaves}, (image[None],))
        if not logits.requires_grad:
            return True
        found = torch.autograd.grad(logits.sum(), list(leaves.values()), allow_unused=True)
    return all(each is None for each in found)


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
