"""Energy of channels: what they moved, and what they weigh."""

import torch
from torch import Tensor, nn

from spatl.channels.layout import EncoderLayout
from spatl.channels.masking import TRANSPOSED
from spatl.channels.vectors import parts_of


def mean_energy(values: Tensor, layout: EncoderLayout) -> Tensor:
    """Return the mean square of each channel's parameters.

    Statistics that travel along are left out: they are of another scale, and would decide alone.

    Args:
        values: float32 [P], one value per trainable entry.
        layout: The encoder.

    Returns:
        float64 [C]; 0 for a channel without parameters.
    """
    energy = torch.zeros(layout.num_channels, dtype=torch.float64)
    for part in parts_of(layout.num_parameter_entries):
        energy.index_add_(0, layout.owner_in(part), values[part].to(torch.float64).square_())
    return energy / layout.parameter_sizes.clamp(min=1)


def update_energy(update: Tensor, layout: EncoderLayout) -> Tensor:
    """Return the energy of each channel's part of an update: the sum of squares over its parameters, float64 [C]."""
    return mean_energy(update[: layout.num_parameter_entries], layout) * layout.parameter_sizes


def drawn_energy(update: Tensor, layout: EncoderLayout, generator: torch.Generator) -> Tensor:
    """Return each channel's update energy over a number of its own from the exponential distribution, float64 [C].

    Ranking it per cost draws channels without replacement, with probabilities proportional to energy per cost
    (Efraimidis and Spirakis 2006): what moved most travels most often, but everything travels at times. Taking the
    largest every time leaves most of the encoder to a few clients, and was worse than a blind draw.
    """
    draws = torch.rand(layout.num_channels, generator=generator, dtype=torch.float64)
    return update_energy(update, layout) / -torch.log1p(-draws).clamp(max=-1e-12)


def magnitude_scores(weights: Tensor, layout: EncoderLayout) -> Tensor:
    """Return the mean square of each channel's weights, each over its layer's mean square (global L2), float64 [C].

    Args:
        weights: float32 [N] or [P].
        layout: The encoder.
    """
    views = layout.unflatten(weights[: layout.num_parameter_entries])
    relative = torch.cat([(v / v.square().mean().sqrt().clamp(min=1e-12)).reshape(-1) for v in views.values()])
    return mean_energy(relative, layout)


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
    if isinstance(layer, TRANSPOSED):
        weights = squares.flatten(1).sum(1)
    else:  # the inputs of each group of a convolution are read by that group's outputs only
        num_groups = getattr(layer, "groups", 1)
        weights = squares.flatten(2).sum(2) if squares.dim() > 2 else squares
        weights = weights.view(num_groups, -1, weights.shape[1]).sum(1).reshape(-1)
    channel_dimension = inputs.dim() - 1 if isinstance(layer, nn.Linear) else inputs.dim() - weight.dim() + 1
    return weights * inputs.float().square().transpose(0, channel_dimension).flatten(1).mean(1)
