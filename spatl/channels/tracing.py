"""Channel groups of any encoder, found by torch-pruning's dependency graph rather than by code per model.

A channel owns, in every layer of its group, the slice of each parameter along the output dimension: a convolution's
filter, its bias, its BatchNorm entries. Residual additions tie the outputs of several layers into one group, and so on
through concatenations and depthwise convolutions. Each entry has exactly one owner, so selecting channels is selecting
disjoint sets of entries. Parameters the graph does not know (recurrent layers, attention) or cannot follow fall back to
one group per module along their first dimension: they can be selected for sending, though never pruned. The graph
computes indices and cannot see what a network does to them, so what it says of who reads a channel is proved before it
is believed (`proof`); channels whose readers cannot be proved are never pruned either.
"""

import logging
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
import torch_pruning as tp
from torch import Tensor, nn

from spatl.channels.flops import (
    LAYERS,
    OUTPUT_IN_DIMENSION_1,
    FlopsModel,
    layer_widths,
    measure_macs,
    whole_flops_model,
)
from spatl.channels.layout import ChannelGroup, EncoderLayout, Labels
from spatl.channels.masking import along_inputs
from spatl.channels.perturbation import Claims
from spatl.channels.proof import refuted
from spatl.channels.trace import EncoderTrace
from spatl.errors import ModelError, lacks_memory
from spatl.models.copies import duplicate
from spatl.tensors.inputs import Inputs, first_of

logger = logging.getLogger(__name__)


def trace_groups(
    model: nn.Module,
    example: Inputs,
    *,
    parameters: Sequence[str],
    statistics: Sequence[str] = (),
) -> EncoderTrace:
    """Find the channel groups of an encoder and lay its entries out.

    The model itself is only copied: its mode, gradients, buffers and `requires_grad` stay as they are.

    Args:
        model: The whole network, encoder and predictor.
        example: `[B, ...]`, an input to trace with; of floating point only its shape matters.
        parameters: Names of the encoder's trainable parameters, in the model's order.
        statistics: Names of floating-point buffers that travel with the parameters (`batch_norm: shared`).

    Returns:
        The layout, and what else follows from the same graph.

    Raises:
        ModelError: The model fails on the example.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    names = [*parameters, *statistics]
    if not names:
        return _empty_trace()

    unusable = [name for name in names if tensors[name].numel() == 0 or not tensors[name].is_floating_point()]
    if unusable:
        raise ModelError(f"parameter {unusable[0]!r} is empty or not real, which cannot be shared; freeze or remove it")
    network = duplicate(model).to("cpu").eval()
    for parameter in network.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(True)
    example = first_of(example)
    macs = measure_macs(network, example)
    channels = _Channels(network, set(names))
    for root, items in _dependency_groups(network, example):
        channels.add_group(root, items)
    channels.add_rest(names, {name: tensors[name].shape for name in names})

    layout = channels.layout({name: tensors[name].shape for name in names}, num_parameters=len(parameters))
    doubtful = channels.prove(layout, example, tensors)
    if doubtful:
        logger.warning(
            "some channels are never pruned, since random inputs do not confirm which layers read them: %s",
            "; ".join(f"those of {name} ({reason})" for name, reason in doubtful.items()),
        )
    encoder_layers = {name.rpartition(".")[0] for name in parameters}
    flops = channels.flops_model(layout, {k: v for k, v in macs.items() if k in encoder_layers})
    readers = channels.readers()
    return EncoderTrace(replace(layout, readings=_readings(network, layout, readers)), flops, readers, doubtful)


def _readings(network: nn.Module, layout: EncoderLayout, readers: Mapping[str, Tensor]) -> tuple[Labels, ...]:
    """By tensor, the channel behind each entry of a weight that reads channels, -1 for all other entries."""
    readings = dict.fromkeys(layout.shapes, Labels(torch.full((1,), -1)))
    for name, channels in readers.items():
        layer, weight = network.get_submodule(name), f"{name}.weight"
        if weight not in layout.shapes:
            continue
        shape = layout.shapes[weight]
        along = along_inputs(layer, torch.empty(shape, device="meta"), channels)
        long = [dimension for dimension, size in enumerate(along.shape) if size > 1]
        if len(long) <= 1:
            readings[weight] = Labels.along(along, shape, long[0] if long else len(shape) - 1)
        else:  # a grouped layer: each of its outputs has inputs of its own
            readings[weight] = Labels(along.expand(shape).reshape(-1))
    return tuple(readings.values())


class _Channels:
    """Owners, collected group by group: `owner[name][position along the owned dimension] = channel key`."""

    def __init__(self, network: nn.Module, names: set[str]) -> None:
        self._names = names
        self._network = network
        self._module_names = {module: name for name, module in network.named_modules(remove_duplicate=True)}
        self._parameter_names = {id(p): name for name, p in network.named_parameters()}
        # name -> (dimension, index -> channel), of what the encoder consists of, and of all that the graph knows
        self._owned: dict[str, tuple[int, dict[int, tuple[str, int]]]] = {}
        self._written: dict[str, tuple[int, dict[int, tuple[str, int]]]] = {}
        self._outputs: dict[str, dict[int, tuple[str, int]]] = {}  # layer -> output index -> channel
        self._inputs: dict[str, dict[int, tuple[str, int]]] = {}

    def add_group(self, root: str, items: list[tuple[nn.Module | nn.Parameter, bool, list[int], list[int]]]) -> None:
        for target, is_output, indices, roots in items:
            channel_of = {index: (root, channel) for index, channel in zip(indices, roots, strict=True)}
            if isinstance(target, nn.Parameter):
                name = self._parameter_names[id(target)]
                dimension = max((d for d in range(target.dim()) if target.shape[d] > 1), default=0)
                self._own(name, dimension, channel_of)
                continue
            layer = self._module_names.get(target)
            if layer is None:  # an operation without parameters: the graph's own node
                continue
            if not is_output:
                self._inputs.setdefault(layer, {}).update(channel_of)
                continue
            known = self._outputs.setdefault(layer, {})
            known.update({index: channel for index, channel in channel_of.items() if index not in known})
            prefix = f"{layer}." if layer else ""
            local = [*target.named_parameters(recurse=False), *target.named_buffers(recurse=False)]
            for name, tensor in local:
                if tensor.dim() > 0:
                    transposed = isinstance(target, OUTPUT_IN_DIMENSION_1) and tensor.dim() > 1
                    self._own(prefix + name, 1 if transposed else 0, channel_of)

    def add_rest(self, names: Sequence[str], shapes: Mapping[str, torch.Size]) -> None:
        """Give every entry without an owner one: rows of its own module's group."""
        for name in names:
            shape = shapes[name]
            dimension, owned = self._owned.get(name, (0, {}))
            length = shape[dimension] if shape else 1
            missing = [index for index in range(length) if index not in owned]
            if missing:
                module = name.rpartition(".")[0] or name
                self._own(name, dimension, {index: (f"{module}[{length}]", index) for index in missing})

    def layout(self, shapes: Mapping[str, torch.Size], *, num_parameters: int) -> EncoderLayout:
        sizes: dict[tuple[str, int], int] = {}
        first_layer: dict[str, str] = {}
        for name, shape in shapes.items():
            dimension, owned = self._owned[name]
            length = shape[dimension] if shape else 1
            for channel in (owned[index] for index in range(length)):
                sizes[channel] = sizes.get(channel, 0) + shape.numel() // length
                first_layer.setdefault(channel[0], name.rpartition(".")[0] or name)

        # Channels of one graph group can own different amounts (a concatenation added to a narrower tensor): they
        # become groups of their own, so that the cost of a count is exact.
        members: dict[tuple[str, int], list[tuple[str, int]]] = {}
        for channel in sorted(sizes, key=lambda key: key[1]):
            members.setdefault((channel[0], sizes[channel]), []).append(channel)
        order = {root: position for position, root in enumerate(first_layer)}
        groups: list[ChannelGroup] = []
        self._index: dict[tuple[str, int], int] = {}
        for root, entries in sorted(members, key=lambda key: (order[key[0]], -key[1])):
            group = members[root, entries]
            groups.append(ChannelGroup(first_layer[root], len(self._index), len(group), entries))
            self._index.update({channel: len(self._index) + i for i, channel in enumerate(group)})

        owners = []
        for name, shape in shapes.items():
            dimension, owned = self._owned[name]
            length = shape[dimension] if shape else 1
            ids = torch.tensor([self._index[owned[index]] for index in range(length)])
            owners.append(Labels.along(ids, shape, dimension))
        num_parameter_entries = sum(shape.numel() for shape in list(shapes.values())[:num_parameters])
        return EncoderLayout(dict(shapes), num_parameter_entries, tuple(owners), tuple(groups))

    def flops_model(self, layout: EncoderLayout, macs: Mapping[str, int]) -> FlopsModel:
        group_of = torch.empty(layout.num_channels, dtype=torch.int64)
        for position, group in enumerate(layout.groups):
            group_of[group.first : group.first + group.size] = position
        shape = (len(macs), len(layout.groups))
        outputs, inputs = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
        widths = torch.ones(2, len(macs), dtype=torch.int64)
        for row, name in enumerate(macs):
            layer = self._network.get_submodule(name)
            num_outputs, num_inputs = layer_widths(layer)
            for matrix, table, width in (
                (outputs, self._outputs.get(name, {}), num_outputs),
                (inputs, self._inputs.get(name, {}), num_inputs),
            ):
                for index, channel in table.items():
                    if index < width and channel in self._index:
                        matrix[row, group_of[self._index[channel]]] += 1
            widths[:, row] = torch.tensor([num_outputs, num_inputs])
            if getattr(layer, "groups", 1) == num_outputs > 1:  # depthwise: an output reads its own input only
                inputs[row], widths[1, row] = 0, 1
        return whole_flops_model(list(macs.values()), layout.group_sizes, outputs, inputs, widths)

    def prove(self, layout: EncoderLayout, example: Inputs, values: Mapping[str, Tensor]) -> dict[str, str]:
        """Forget what cannot be proved of who reads what, and return why, by the name of the group; spoils the network.

        Args:
            layout: What `layout` returned.
            example: An input.
            values: The network's parameters and buffers.
        """
        roots = list(dict.fromkeys(root for root, _ in self._index))
        names = {root: layout.groups[int(layout.group_of[channel])].name for (root, _), channel in self._index.items()}
        reasons: dict[str, str] = {}
        for name, reason in self._never_masked().items():
            for root in dict.fromkeys(root for root, _ in self._inputs[name].values()):
                reasons[root] = f"{reasons[root]}, {reason}" if root in reasons else reason
        traced = {root for table in self._outputs.values() for root, _ in table.values()} - reasons.keys()
        group_of = torch.full((layout.num_channels,), -1)
        for (root, _), channel in self._index.items():
            if root in traced:
                group_of[channel] = roots.index(root)
        self._forget(reasons)
        claims = Claims(
            group_of=group_of,
            written={
                name: (dimension, self._channels(channel_of, values[name].shape[dimension]))
                for name, (dimension, channel_of) in self._written.items()
                if name in values  # which has a tensor under its first name only
            },
            read=self.readers(),
        )
        reasons |= {roots[group]: reason for group, reason in refuted(self._network, values, example, claims).items()}
        self._forget(reasons)
        return {names[root]: reasons[root] for root in roots if root in reasons}

    def _never_masked(self) -> dict[str, str]:
        """Return why layers cannot be masked, by name, of those that read channels."""
        uses = Counter(p for module in self._network.modules() for p in module._parameters.values() if p is not None)
        tied = {parameter for parameter, number in uses.items() if number > 1}
        reasons: dict[str, str] = {}
        for name, table in self._inputs.items():
            layer = self._network.get_submodule(name)
            if not isinstance(layer, LAYERS):
                reasons[name] = f"layer {name} reads them, a {type(layer).__name__}"
            elif layer._parameters.get("weight") is None or layer.weight in tied:
                reasons[name] = f"layer {name} shares or computes its weight"
            elif (
                max(table) >= layer_widths(layer)[1]
            ):  # as behind a pixel shuffle, whose rearrangement it does not follow
                reasons[name] = f"which of them layer {name} reads cannot be told"
        return reasons

    def _forget(self, roots: Collection[str]) -> None:
        """Take back what is said of the readers of some groups, and that their layers can become narrower."""
        for tables in (self._inputs, self._outputs):
            for name, table in tables.items():
                tables[name] = {index: channel for index, channel in table.items() if channel[0] not in roots}

    def readers(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, table in self._inputs.items():
            layer = self._network.get_submodule(name)
            if isinstance(layer, LAYERS):
                channels = self._channels(table, layer_widths(layer)[1])
                if bool((channels >= 0).any()):
                    found[name] = channels
        return found

    def _channels(self, channel_of: Mapping[int, tuple[str, int]], width: int) -> Tensor:
        """int64 [width]: the channel of each index, -1 where it is none of the encoder."""
        return torch.tensor([self._index.get(channel_of.get(index, ("", -1)), -1) for index in range(width)])

    def _own(self, name: str, dimension: int, channel_of: Mapping[int, tuple[str, int]]) -> None:
        known = self._written.setdefault(name, (dimension, {}))[1]
        known.update({index: channel for index, channel in channel_of.items() if index not in known})
        if name in self._names:
            self._owned[name] = self._written[name]


def _dependency_groups(
    network: nn.Module, example: Inputs
) -> Iterator[tuple[str, list[tuple[nn.Module | nn.Parameter, bool, list[int], list[int]]]]]:
    """Yield (root layer, [(module or parameter, along its outputs?, indices, channels of the root)])."""
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # it warns of parameters outside a layer, which are handled here
        try:
            graph = tp.DependencyGraph().build_dependency(network, example_inputs=example)
        except Exception as error:  # whatever a user's forward makes it trip over
            if lacks_memory(error):
                raise
            logger.warning("the dependency graph cannot follow this model (%s); channels are not coupled", error)
            return
        covered: dict[str, set[int]] = {}
        names = {module: name for name, module in network.named_modules()}
        for name, module in network.named_modules():
            if not isinstance(module, LAYERS) or module not in graph.module2node:
                continue
            pruner = graph.get_pruner_of_module(module)
            rest = [i for i in range(layer_widths(module)[0]) if i not in covered.get(name, set())]
            if not rest:
                continue
            try:
                group = graph.get_pruning_group(module, pruner.prune_out_channels, rest)
            except Exception as error:
                if lacks_memory(error):
                    raise
                logger.warning("the dependency graph cannot follow layer %s (%s); it is not coupled", name, error)
                continue
            items = []
            for item in group:
                target = item.dep.target.module
                is_output = bool(graph.is_out_channel_pruning_fn(item.dep.handler))
                items.append((target, is_output, list(item.idxs), list(item.root_idxs)))
                if is_output and target in names:
                    covered.setdefault(names[target], set()).update(item.idxs)
            yield name, items


def _empty_trace() -> EncoderTrace:
    none = torch.zeros(0, dtype=torch.float64)
    empty = EncoderLayout({}, 0, (), ())
    return EncoderTrace(empty, FlopsModel(none, none, none.view(0, 0), none.view(0, 0), none, none, none), {})
