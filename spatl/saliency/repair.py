"""Repair: the filters that are blamed for one example trained on that example alone (arXiv 2108.01335)."""

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
    weights = filter_weights(model, filters)
    for _ in range(steps):
        gradients = example_gradients(model, image, label, weights)
        masked = _masked(gradients, filters, chosen)
        weights = {name: each - learning_rate * masked[name] for name, each in weights.items()}
    return weights


def repaired_by(
    weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], filters: Filters, chosen: Tensor, *, length: float
) -> dict[str, Tensor]:
    """Return weights after one step of a given length down the gradient, by chosen filters alone.

    Filters that are salient have large gradients. With one learning rate they are changed more than those of a control,
    and what differs may be the size of the change; with one length it is not.

    Args:
        weights: As of `filter_weights`.
        gradients: As of `example_gradients`.
        filters: Of the network.
        chosen: bool [F].
        length: L2 length of the change, over all weights together.

    Returns:
        As of `repaired`; nothing is changed where the gradient of the chosen filters is zero.
    """
    masked = _masked(gradients, filters, chosen)
    norm = length_of(masked)
    factor = length / norm if norm > 0 else 0.0
    return {name: each - factor * masked[name] for name, each in weights.items()}


def length_of(tensors: Mapping[str, Tensor]) -> float:
    """Return the L2 length of all tensors together."""
    return float(torch.stack([each.double().square().sum() for each in tensors.values()]).sum().sqrt())


def filter_weights(model: nn.Module, filters: Filters) -> dict[str, Tensor]:
    """Return copies of the weights that have filters, by name."""
    parameters = dict(model.named_parameters())
    return {layer.weight: parameters[layer.weight].detach().clone() for layer in filters.layers}


def example_gradients(
    model: nn.Module, image: Tensor, label: Tensor, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the gradient of one example's cross-entropy with respect to some weights, by name.

    Args:
        model: As of `repaired`; so are the image and the label.
        image: Likewise.
        label: Likewise.
        weights: What stands in the place of the network's own.
    """
    buffers = {name: each.clone() for name, each in model.named_buffers()}
    leaves = {name: each.detach().clone().requires_grad_() for name, each in weights.items()}
    with in_eval_mode(model), torch.enable_grad():
        logits = functional_call(model, {**buffers, **leaves}, (image[None],)).float()
        loss = F.cross_entropy(logits, label[None])
        found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def logits_with(model: nn.Module, images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Return float32 [N, K]: a network's logits with other weights, in eval mode; it stays as it is."""
    buffers = {name: each.clone() for name, each in model.named_buffers()}
    with in_eval_mode(model), torch.no_grad():
        logits: Tensor = functional_call(model, {**buffers, **weights}, (images,))
    return logits.float()


def _masked(gradients: Mapping[str, Tensor], filters: Filters, chosen: Tensor) -> dict[str, Tensor]:
    """Return gradients with zeros but for those of the chosen filters."""
    return {
        layer.weight: gradients[layer.weight]
        * layer.spread(chosen[layer.places], gradients[layer.weight].shape).to(gradients[layer.weight].device)
        for layer in filters.layers
    }
