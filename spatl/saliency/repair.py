"""Repair: the filters that are blamed for one example trained on that example alone (arXiv 2108.01335, section 4.2)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from spatl.saliency.filters import Filters
from spatl.saliency.profiles import in_eval_mode


def repaired(
    model: nn.Module, image: Tensor, label: Tensor, filters: Filters, chosen: Tensor, *, learning_rate: float,
    steps: int = 1,
) -> dict[str, Tensor]:  # fmt: skip
    """Return weights after steps of gradient descent on one example, by chosen filters alone; the network stays.

    Args:
        model: The network; taken in eval mode.
        image: float32 [C, H, W].
        label: int64, the right class.
        filters: Of the network.
        chosen: bool [F].
        learning_rate: Of the steps.
        steps: How many.

    Returns:
        The weights that have filters, by name, whole: those of other filters are the network's own.
    """
    parameters = dict(model.named_parameters())
    buffers = {name: each.clone() for name, each in model.named_buffers()}
    weights = {layer.weight: parameters[layer.weight].detach().clone() for layer in filters.layers}
    masks = {
        layer.weight: layer.spread(chosen[layer.places], parameters[layer.weight].shape).to(image.device)
        for layer in filters.layers
    }
    with in_eval_mode(model):
        for _ in range(steps):
            leaves = {name: each.requires_grad_() for name, each in weights.items()}
            logits = functional_call(model, {**buffers, **leaves}, (image[None],)).float()
            gradients = torch.autograd.grad(F.cross_entropy(logits, label[None]), list(leaves.values()))
            weights = {
                name: (leaf - learning_rate * gradient * masks[name]).detach()
                for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
            }
    return weights


def logits_with(model: nn.Module, images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Return float32 [N, K]: a network's logits with other weights, in eval mode; it stays as it is."""
    buffers = {name: each.clone() for name, each in model.named_buffers()}
    with in_eval_mode(model), torch.no_grad():
        logits: Tensor = functional_call(model, {**buffers, **weights}, (images,))
    return logits.float()
