"""Masking of a network: weights that no longer read the channels that were not selected.

Channels are removed where they are read: the weights that read a dropped channel become zero. Zeroing what a channel
is made of instead would leave its constant part behind, since BatchNorm and biases make f(0) something other than 0.
Only convolutions and linear layers read here: where something else mixes channels (a product of two tensors, LayerNorm,
GroupNorm), dropped channels still take part.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spatl.channels.selection import Selection

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def masked_weights(model: nn.Module, readers: Mapping[str, Tensor], selection: Selection) -> dict[str, Tensor]:
    """Return the weights that read dropped channels, with what reads them set to zero, for `functional_call`.

    Args:
        model: The network; it is not changed.
        readers: int64 [I] by layer, the channel behind each input (`EncoderTrace.readers`).
        selection: The channels that stay.

    Returns:
        New weights by parameter name, on the model's device; only of layers that lose an input.
    """
    weights: dict[str, Tensor] = {}
    # Index -1, an input that is no channel of the encoder, reads the appended true.
    kept = torch.cat([selection.mask, torch.ones(1, dtype=torch.bool)])
    for name, channels in readers.items():
        stays = kept[channels]
        if bool(stays.all()):
            continue
        layer = model.get_submodule(name)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        weights[f"{name}.weight"] = weight.detach() * along_inputs(layer, weight, stays.to(weight.device))
    return weights


def along_inputs(layer: nn.Module, weight: Tensor, stays: Tensor) -> Tensor:
    """Shape values [I], one per input of a layer, so that they broadcast against its weight."""
    if isinstance(layer, TRANSPOSED):
        return stays.view(-1, *[1] * (weight.dim() - 1))
    num_groups = getattr(layer, "groups", 1)
    if num_groups == 1:
        return stays.view(1, -1, *[1] * (weight.dim() - 2))
    per_group = stays.view(num_groups, -1).repeat_interleave(weight.shape[0] // num_groups, dim=0)
    return per_group.view(*per_group.shape, *[1] * (weight.dim() - 2))
