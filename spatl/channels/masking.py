"""What a network computes without the channels that were not selected, by weights that no longer read them.

Channels are removed where they are read: the weights that read a dropped channel become zero. Zeroing what a channel
is made of instead would leave its constant part behind, since BatchNorm and biases make f(0) something other than 0.
Only convolutions and linear layers read here: where something else mixes channels (a product of two tensors, LayerNorm,
GroupNorm), dropped channels still take part.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spatl.channels.selection import Selection

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


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
    if isinstance(layer, _TRANSPOSED):
        return stays.view(-1, *[1] * (weight.dim() - 1))
    num_groups = getattr(layer, "groups", 1)
    if num_groups == 1:
        return stays.view(1, -1, *[1] * (weight.dim() - 2))
    per_group = stays.view(num_groups, -1).repeat_interleave(weight.shape[0] // num_groups, dim=0)
    return per_group.view(*per_group.shape, *[1] * (weight.dim() - 2))


def input_energy(layer: nn.Module, inputs: Tensor) -> Tensor:
    """The energy a layer receives through each of its inputs: squared weights times the input's mean square.

    Args:
        layer: A convolution or linear layer.
        inputs: What it reads: [B, I, ...] for a convolution, [..., I] for a linear layer.

    Returns:
        float32 [I].
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    squares = weight.detach().float().square()
    if isinstance(layer, _TRANSPOSED):
        weights = squares.flatten(1).sum(1)
    else:  # the inputs of each group of a convolution are read by that group's outputs only
        num_groups = getattr(layer, "groups", 1)
        weights = squares.flatten(2).sum(2) if squares.dim() > 2 else squares
        weights = weights.view(num_groups, -1, weights.shape[1]).sum(1).reshape(-1)
    channel_dimension = inputs.dim() - 1 if isinstance(layer, nn.Linear) else inputs.dim() - weight.dim() + 1
    return weights * inputs.float().square().transpose(0, channel_dimension).flatten(1).mean(1)
