"""Signal of each channel: its share in the layers that read it, by one forward pass without labels or gradients.

A layer that reads channel j through weights w_j receives the energy |w_j|^2 E[a_j^2] from it. A channel's signal is its
share of that energy, added up over all layers that read it: a residual stream is read often, and counts for as much.
Filter norms, the usual measure, say little here: BatchNorm rescales whatever a filter's norm is. The measure per
weight is that of Sun et al. 2024 (Wanda, arXiv 2306.11695, equation 1); summing it over a channel's readers is ours.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spatl.channels.layout import EncoderLayout
from spatl.selection.energy import input_energy
from spatl.tensors.inputs import Inputs
from spatl.training.evaluate import forward_with_batch_statistics

MAX_EXAMPLES = 64
"""As many examples as the measurement needs; more change little."""


def channel_signal(model: nn.Module, layout: EncoderLayout, readers: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
    """Measure the signal of each channel; the model stays as it was.

    Args:
        model: The network.
        layout: The encoder.
        readers: int64 [I] by layer, the channel behind each input (`EncoderTrace.readers`).
        inputs: `[B, ...]`, at least one; the first `MAX_EXAMPLES` are used.

    Returns:
        float64 [C] on the CPU, finite and at least 0. A channel that no convolution or linear layer reads (the logits
        of a shared predictor, a recurrent layer) gets the mean of those that are read: nothing is known of it.

    The energy includes a channel's constant part, which a BatchNorm behind the reader would absorb; its variance alone
    was tried and chose no better over several families.
    """
    signal = torch.zeros(layout.num_channels, dtype=torch.float64)
    is_read = torch.zeros(layout.num_channels, dtype=torch.bool)

    def hook(channels: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            energy = input_energy(layer, inputs[0].detach()).cpu().double()
            known = channels >= 0
            shares = (energy / energy.sum().clamp(min=1e-30)).nan_to_num(0.0, 0.0, 0.0)
            signal.index_add_(0, channels[known], shares[known])
            is_read[channels[known]] = True

        return add

    handles = []
    for name, channels in readers.items():
        layer = model.get_submodule(name)
        # A depthwise layer passes a channel on within its own group: what reads it afterwards tells its worth.
        if getattr(layer, "groups", 1) < max(2, len(channels)):
            handles.append(layer.register_forward_pre_hook(hook(channels)))
    try:
        forward_with_batch_statistics(model, inputs[:MAX_EXAMPLES])
    finally:
        for handle in handles:
            handle.remove()
    signal[~is_read] = float(signal[is_read].mean()) if bool(is_read.any()) else 1.0
    return signal
