"""Physical narrowing of a network: layers, normalisation and bare parameters without the channels that were dropped.

What is kept of each layer is plain data, lists of indices by name that go into a JSON file as they are. The same data
makes the narrow network from any dense one of the same structure (`rebuild`), into which the state dict then loads:
nothing of a network's classes is ever stored.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from spatl.channels.flops import LAYERS, layer_widths
from spatl.channels.layout import EncoderLayout
from spatl.channels.masking import TRANSPOSED
from spatl.channels.selection import Selection
from spatl.channels.trace import EncoderTrace
from spatl.errors import ModelError
from spatl.models.copies import duplicate
from spatl.models.frozen import NORMALISATION
from spatl.tensors.inputs import Inputs

OUTPUTS: Final = "outputs"
INPUTS: Final = "inputs"
WIDTH: Final = "width"

CutData = dict[str, Any]
"""Plain data of a cut: `{"layers": {name: {"outputs": [...], "inputs": [...]}}, "parameters": {name: {"dimension": d,
"kept": [...]}}}`, where what is not named stays whole. `outputs` are those of a layer, or the features of a
normalisation; indices are those of the dense network, ascending. A normalisation without any tensor has `{"width":
number}` instead."""


def owned_along(layout: EncoderLayout, name: str) -> tuple[int, Tensor]:
    """Return the dimension of a tensor along which channels own it, and the channel of each index, int64 [length].

    Args:
        layout: The layout.
        name: A tensor of it.
    """
    shape = layout.shapes[name]
    labels = layout.owners[list(layout.shapes).index(name)]
    for dimension, length in enumerate(shape):
        if length == len(labels.pattern) and shape[dimension + 1 :].numel() == labels.inner:
            return dimension, labels.pattern
    return 0, labels.pattern  # a tensor of no dimension


def cut_data(network: nn.Module, trace: EncoderTrace, selection: Selection) -> CutData:
    """Return what is kept of each layer under a selection.

    Args:
        network: The dense network.
        trace: Its channels.
        selection: The channels that stay. Those that may not be cut must all be among them, and what is left of a
            grouped convolution must be the same in each of its groups (`spatl.channels.prunable`).
    """
    kept = torch.cat([selection.mask, torch.ones(1, dtype=torch.bool)])  # -1, which is no channel, reads the last
    layers: dict[str, dict[str, list[int]]] = {}
    parameters: dict[str, dict[str, Any]] = {}
    for name in trace.layout.shapes:
        dimension, channels = owned_along(trace.layout, name)
        stays = kept[channels]
        if bool(stays.all()):
            continue
        parent = name.rpartition(".")[0]
        indices = stays.nonzero().squeeze(1).tolist()
        if isinstance(network.get_submodule(parent), _NARROWED):
            layers.setdefault(parent, {})[OUTPUTS] = indices
        else:
            parameters[name] = {"dimension": dimension, "kept": indices}
    for name, channels in trace.readers.items():
        stays = kept[channels]
        if not bool(stays.all()):
            layers.setdefault(name, {})[INPUTS] = stays.nonzero().squeeze(1).tolist()
    return {"layers": layers, "parameters": parameters}


def rebuild(network: nn.Module, cut: Mapping[str, Any]) -> nn.Module:
    """Return a copy of a dense network that is as narrow as the data of a cut say; the network stays as it was.

    Args:
        network: The network as its factory builds it, with any weights.
        cut: The data, as `CutNetwork.cut` has them or read back from JSON.

    Returns:
        The copy, with the weights of the kept channels; a state dict of the cut network loads into it.

    Raises:
        ModelError: The data do not fit the network.

    Example:
        >>> small = rebuild(build_model("vgg11", num_classes=10, in_channels=1, image_size=28, seed=1)[0], cut)
        >>> small.load_state_dict(state)
    """
    layers, parameters = cut.get("layers"), cut.get("parameters")
    if not isinstance(layers, Mapping) or not isinstance(parameters, Mapping):
        raise ModelError("the data of a cut must have the entries 'layers' and 'parameters'")
    small = duplicate(network)
    modules = dict(small.named_modules())
    for name, kept in layers.items():
        layer = modules.get(name)
        if not isinstance(layer, _NARROWED) or not isinstance(kept, Mapping) or kept.keys() - {OUTPUTS, INPUTS, WIDTH}:
            raise ModelError(f"the cut does not fit the network: {name!r} is no layer that it can make narrower")
        if WIDTH in kept:
            _set_width_(layer, name, kept[WIDTH])
            continue
        narrow_(layer, name, outputs=kept.get(OUTPUTS), inputs=kept.get(INPUTS))
    for name, kept in parameters.items():
        module = modules.get(name.rpartition(".")[0])
        own = name.rpartition(".")[2]
        tensor = None if module is None else module._parameters.get(own)
        if module is None or tensor is None or not isinstance(kept, Mapping) or not tensor.dim():
            raise ModelError(f"the cut does not fit the network: it has no parameter {name!r}")
        dimension = kept.get("dimension")
        if type(dimension) is not int or dimension not in range(tensor.dim()):
            raise ModelError(f"the cut does not fit the network: {name!r} has no dimension {dimension!r}")
        _keep_(module, own, dimension, _checked(kept.get("kept"), tensor.shape[dimension], name))
    return small


def narrow_(
    layer: nn.Module, name: str, *, outputs: Sequence[int] | None = None, inputs: Sequence[int] | None = None
) -> None:
    """Make a layer narrower in place: its tensors, and the attributes that tell its widths.

    Args:
        layer: A convolution (transposed, grouped and depthwise ones too), a linear layer, a normalisation, a PReLU.
        name: What it is called in messages.
        outputs: The outputs, or the features of a normalisation, that stay; None for all.
        inputs: The inputs that stay, likewise.

    Raises:
        ModelError: Indices are not those of such a layer, or its groups would not be equally wide.
    """
    if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
        num_outputs, num_inputs = layer_widths(layer)
        if is_depthwise(layer):  # what it reads is what it writes
            inputs = outputs if inputs is None else inputs
        _narrow_layer_(
            layer, name, _checked(outputs, num_outputs, f"{name}.{OUTPUTS}"),
            _checked(inputs, num_inputs, f"{name}.{INPUTS}"),
        )  # fmt: skip
        return
    if inputs is not None:
        raise ModelError(f"the cut does not fit the network: layer {name!r} has no inputs of its own")
    attribute = "num_parameters" if isinstance(layer, nn.PReLU) else "num_features"
    kept = _checked(outputs, getattr(layer, attribute), f"{name}.{OUTPUTS}")
    for own, tensor in _tensors_of(layer):
        if tensor.dim() > 0:
            _keep_(layer, own, 0, kept)
    setattr(layer, attribute, len(kept))


_NARROWED: Final = (*LAYERS, NORMALISATION, nn.PReLU)


def widths_without_tensors(network: nn.Module, inputs: Inputs) -> dict[str, int]:
    """Return the widths of what arrives at normalisation layers that hold no tensor, and so are as wide as they say.

    Args:
        network: The cut network in eval mode.
        inputs: `[B, ...]`.

    Returns:
        By name of such a layer that says otherwise, how many channels arrive.
    """
    found: dict[str, int] = {}
    handles = [
        module.register_forward_pre_hook(partial(_note_width, found, name))
        for name, module in network.named_modules()
        if isinstance(module, NORMALISATION) and not _tensors_of(module)
    ]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # InstanceNorm says that it is not as wide as its input
            network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def can_be_narrowed(module: nn.Module) -> bool:
    """Return whether a module is a layer that can be made narrower."""
    return isinstance(module, _NARROWED)


def is_depthwise(layer: nn.Module) -> bool:
    """Return whether each output of a convolution reads its own input only."""
    return isinstance(layer, nn.modules.conv._ConvNd) and layer.groups == layer.out_channels == layer.in_channels > 1


def _narrow_layer_(layer: nn.modules.conv._ConvNd | nn.Linear, name: str, outputs: Tensor, inputs: Tensor) -> None:
    num_groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    if is_depthwise(layer):
        if not torch.equal(outputs, inputs):
            raise ModelError(f"the cut does not fit the network: layer {name!r} must keep the same outputs and inputs")
        _keep_(layer, "weight", 0, outputs)
        num_groups = len(outputs)
    else:
        outs = _by_group(outputs, layer_widths(layer)[0], num_groups, name)
        ins = _by_group(inputs, layer_widths(layer)[1], num_groups, name)
        weight = layer.weight.detach()
        if isinstance(layer, TRANSPOSED):  # [I, O / g, ...]
            width, rows, columns = layer_widths(layer)[0] // num_groups, ins, outs
        else:  # [O, I / g, ...]
            width, rows, columns = layer_widths(layer)[1] // num_groups, outs, ins
        pieces = [
            weight.index_select(0, row.to(weight.device)).index_select(1, (column % width).to(weight.device))
            for row, column in zip(rows, columns, strict=True)
        ]
        _set_(layer, "weight", torch.cat(pieces))
    if layer.bias is not None:
        _keep_(layer, "bias", 0, outputs)
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = len(outputs), len(inputs)
    else:
        layer.out_channels, layer.in_channels, layer.groups = len(outputs), len(inputs), num_groups


def _note_width(found: dict[str, int], name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    width = inputs[0].shape[1]
    if width != layer.num_features:
        found[name] = width


def _set_width_(layer: nn.Module, name: str, width: object) -> None:
    if not isinstance(layer, NORMALISATION) or _tensors_of(layer) or type(width) is not int or width < 1:
        raise ModelError(f"the cut does not fit the network: layer {name!r} cannot be set to the width {width!r}")
    layer.num_features = width


def _tensors_of(layer: nn.Module) -> list[tuple[str, Tensor]]:
    return [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]


def _by_group(kept: Tensor, width: int, num_groups: int, name: str) -> list[Tensor]:
    """Split the kept indices of a grouped convolution into those of each group, which must be equally many."""
    parts = [kept[kept * num_groups // width == group] for group in range(num_groups)]
    if len({len(part) for part in parts}) != 1:
        raise ModelError(f"the cut does not fit the network: it leaves layer {name!r} groups of different widths")
    return parts


def _checked(kept: object, width: int, what: str) -> Tensor:
    """Return indices as int64 [K]; of None all.

    Raises:
        ModelError: They are not whole numbers that ascend within the width, or there are none.
    """
    if kept is None:
        return torch.arange(width)
    numbers = list(kept) if isinstance(kept, list | tuple) and all(type(index) is int for index in kept) else []
    if not numbers or numbers != sorted(set(numbers)) or numbers[0] < 0 or numbers[-1] >= width:
        raise ModelError(f"the cut does not fit the network: {what} must be ascending numbers below {width}")
    return torch.tensor(numbers, dtype=torch.int64)


def _keep_(module: nn.Module, own: str, dimension: int, kept: Tensor) -> None:
    tensor = module._parameters[own] if own in module._parameters else module._buffers[own]
    assert tensor is not None
    _set_(module, own, tensor.detach().index_select(dimension, kept.to(tensor.device)))


def _set_(module: nn.Module, own: str, tensor: Tensor) -> None:
    old = module._parameters.get(own)
    if old is None:
        module._buffers[own] = tensor
    else:
        module._parameters[own] = nn.Parameter(tensor, requires_grad=old.requires_grad)
