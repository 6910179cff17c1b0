"""Input maps: which parts of an image the blamed filters have to do with (arXiv 2108.01335).

With s the standardised profile of an example and s' the same with its most salient filters boosted, as a constant, the
map is the size of the gradient of their cosine with respect to the image, |d cos(s, s') / dx|: where a pixel changes
how much those filters stand out. It takes a second derivative. Beside it stands the plain gradient of the loss,
|dL/dx|, which no experiment has shown it to be better than.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from spatl.data import Examples
from spatl.saliency.filters import Filters
from spatl.saliency.moments import Moments, standardised
from spatl.saliency.profiles import in_eval_mode

_BOOST = 100.0
"""Factor by which the most salient filters are boosted, the paper's."""


@dataclass(frozen=True, eq=False)
class InputMaps:
    """Maps of examples.

    Attributes:
        salient: float32 [N, H, W], at least 0: the largest over the channels of the image.
        gradient: float32 [N, H, W], likewise, of the loss.
    """

    salient: Tensor
    gradient: Tensor


def input_maps(
    model: nn.Module, examples: Examples, filters: Filters, moments: Moments, *, k: int = 10, boost: float = _BOOST
) -> InputMaps:
    """Return the maps of each example; the network stays as it was.

    Args:
        model: The network; taken in eval mode.
        examples: On the network's device.
        filters: Of the network.
        moments: What profiles are standardised by.
        k: How many filters are boosted.
        boost: By which factor.

    Returns:
        On the CPU.
    """
    with in_eval_mode(model):
        pairs = [
            _maps_of_one(model, examples.images[number], examples.targets[number], filters, moments, k, boost)
            for number in range(len(examples))
        ]
    return InputMaps(*(torch.stack(each).cpu() for each in zip(*pairs, strict=True)))


def _maps_of_one(
    model: nn.Module, image: Tensor, label: Tensor, filters: Filters, moments: Moments, k: int, boost: float
) -> tuple[Tensor, Tensor]:
    leaf = image[None].detach().clone().requires_grad_()
    weights = {
        name: each.detach().clone().requires_grad_()
        for name, each in model.named_parameters()
        if name in {layer.weight for layer in filters.layers}
    }
    buffers = {name: each.clone() for name, each in model.named_buffers()}
    loss = F.cross_entropy(functional_call(model, {**buffers, **weights}, (leaf,)).float(), label[None])
    found = torch.autograd.grad(loss, [leaf, *weights.values()], create_graph=True, materialize_grads=True)
    profile = filters.absolute_means(dict(zip(weights, found[1:], strict=True)))
    z = standardised(profile, moments)
    boosted = z.detach().clone()
    boosted[boosted.topk(min(k, len(boosted))).indices] *= boost
    cosine = F.cosine_similarity(z, boosted, dim=0)
    (salient,) = torch.autograd.grad(cosine, leaf)
    return salient[0].abs().amax(0), found[0][0].detach().abs().amax(0)
