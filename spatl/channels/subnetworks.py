"""Sub-networks of a network, to be trained in its place: cut physically by channels, and mapped back by index.

A channel that is left out is gone from the layers that write it and from those that read it, the private predictor's
columns and the normalisation's statistics included. What of a parameter is left are the entries of the closed selection
(`spatl.channels.selection`), so that what was trained of the encoder is what travels, and all else keeps its bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spatl.channels.masking import masked_weights
from spatl.channels.narrowing import WIDTH, CutData, cut_data, rebuild, widths_without_tensors
from spatl.channels.prunable import find_prunable, prunable_encoder
from spatl.channels.selection import Selection
from spatl.channels.trace import EncoderTrace
from spatl.errors import ModelError, told
from spatl.models.copies import duplicate
from spatl.tensors.inputs import Inputs, first_of, inputs_like

_LARGEST_DIFFERENCE = 1e-4  # of the largest output, between the cut network and the masked one


@dataclass(frozen=True, eq=False)
class SubNetwork:
    """Part of a network, as a smaller one.

    Attributes:
        network: The smaller one, with what the whole one held in what is left; modes and hooks are the same.
        positions: int64 by name of each parameter and buffer that is smaller, in its shape: where its entries lie in
            the whole one's, counted row by row.
    """

    network: nn.Module
    positions: Mapping[str, Tensor]

    def of(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what is left of tensors that are shaped like the whole network's parameters, by name."""
        return {
            name: tensor.reshape(-1)[self.positions[name].to(tensor.device)] if name in self.positions else tensor
            for name, tensor in tensors.items()
        }

    def put_back_(self, network: nn.Module) -> None:
        """Copy all that the smaller network holds into the whole one, in place; what it lacks keeps its bits there."""
        whole = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        own = [*self.network.named_parameters(), *self.network.named_buffers()]
        with torch.no_grad():
            for name, tensor in own:
                if name not in self.positions:
                    whole[name].copy_(tensor)
                    continue
                flat = whole[name].detach().reshape(-1).clone()
                flat[self.positions[name].reshape(-1).to(flat.device)] = tensor.detach().reshape(-1)
                whole[name].copy_(flat.view(whole[name].shape))


class SubNetworks:
    """Sub-networks of one network: which channels they may lack, and what is left without them.

    Args:
        network: The network; it stays as it was.
        example: `[B, ...]`, an input.
        trace: The encoder's, whose channels selections are of.

    Attributes:
        prunable: What may be cut, in the encoder's channels.

    Raises:
        ModelError: The network fails on the example.
    """

    def __init__(self, network: nn.Module, example: Inputs, trace: EncoderTrace) -> None:
        self._network = network
        self._example = first_of(example)
        self._whole = find_prunable(network, example)
        self.prunable, self._own = prunable_encoder(network, self._whole, trace)

    def cut(self, network: nn.Module, selection: Selection) -> SubNetwork:
        """Return the part of a network that a selection keeps.

        Args:
            network: One like that which was traced; it stays as it was.
            selection: The encoder's channels that stay, all of those that must among them (`Prunable.completed`).
        """
        data = self._data(selection)
        if not data["layers"] and not data["parameters"]:
            return SubNetwork(rebuild(network, data), {})
        numbered = rebuild(self._numbered, data)
        found = {**dict(numbered.named_parameters()), **dict(numbered.named_buffers())}
        positions = {
            name: found[name].detach().to(torch.int64)
            for name, shape in self._shapes.items()
            if found[name].shape != shape
        }
        return SubNetwork(rebuild(network, data), positions)

    def check(self, selection: Selection) -> None:
        """Raise unless a sub-network computes what the network does without the weights that read what is left out.

        Raises:
            ModelError: It fails, or computes something else.
        """
        inputs = inputs_like(self._example, 2, lambda shape: torch.linspace(-1, 1, shape.numel()).view(shape))
        whole = duplicate(self._network).to("cpu").eval()
        masks = masked_weights(whole, self._whole.trace.readers, self._in_whole(selection))
        try:
            with torch.no_grad():
                small = self.cut(whole, selection).network(inputs)
        except Exception as error:
            raise ModelError(
                f"the model cannot be trained in part (selection.when: before), perhaps because its forward depends on "
                f"a number of channels: {told(error)}; set selection.when: after"
            ) from error
        with torch.no_grad():
            masked = functional_call(whole, masks, (inputs,))
        scale = masked.abs().max().clamp(min=1e-30)
        if small.shape != masked.shape or not float((small - masked).abs().max() / scale) <= _LARGEST_DIFFERENCE:
            raise ModelError(
                "the model cannot be trained in part (selection.when: before): without some of its channels it does "
                "not compute what it computes when nothing reads them; set selection.when: after"
            )

    def _in_whole(self, selection: Selection) -> Selection:
        """Return the channels of the whole network that stay."""
        return Selection(torch.cat([selection.mask, torch.ones(1, dtype=torch.bool)])[self._own])

    def _data(self, selection: Selection) -> CutData:
        data = cut_data(self._network, self._whole.trace, self._in_whole(selection))
        if self._has_bare_normalisation:
            small = rebuild(self._network, data).to("cpu").eval()
            for name, width in widths_without_tensors(small, self._example).items():
                data["layers"][name] = {WIDTH: width}
        return data

    @cached_property
    def _has_bare_normalisation(self) -> bool:
        """True where a normalisation has no tensor, and nothing tells its width but what arrives."""
        layers = [each for each in self._network.modules() if hasattr(each, "num_features")]
        return any(not [*each.parameters(recurse=False), *each.buffers(recurse=False)] for each in layers)

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        named = [*self._network.named_parameters(), *self._network.named_buffers()]
        return {name: tensor.shape for name, tensor in named}

    @cached_property
    def _numbered(self) -> nn.Module:
        """A copy of the network in which every entry is its own place in its tensor, float64: exact up to 2**53."""
        copied = duplicate(self._network).to("cpu")
        for module in copied.modules():
            for name, parameter in module.named_parameters(recurse=False):
                module._parameters[name] = nn.Parameter(_places(parameter), requires_grad=False)
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = _places(buffer)
        return copied


def _places(tensor: Tensor) -> Tensor:
    return torch.arange(tensor.numel(), dtype=torch.float64).view(tensor.shape)
