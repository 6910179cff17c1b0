"""Channels of a network that may be cut: those whose readers are proved, in layers that can be made narrower.

Everything else is kept whole. What no convolution or linear layer reads is never cut either: the class logits, the
hidden state of a recurrent layer. Grouped convolutions need as many channels in each of their groups, which a
selection may not have: it is completed.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from spatl.channels.flops import LAYERS, OUTPUT_IN_DIMENSION_1, FlopsModel, layer_widths, whole_flops_model
from spatl.channels.layout import EncoderLayout
from spatl.channels.narrowing import can_be_narrowed, is_depthwise, owned_along
from spatl.channels.selection import Selection
from spatl.channels.trace import EncoderTrace
from spatl.channels.tracing import trace_groups
from spatl.errors import ModelError
from spatl.models.copies import duplicate
from spatl.models.frozen import NORMALISATION
from spatl.tensors.inputs import Inputs, first_of

logger = logging.getLogger(__name__)

_UNREAD = "no convolution or linear layer is known to read them"


@dataclass(frozen=True, eq=False)
class Prunable:
    """Channels of a whole network, and which of them may be cut.

    Attributes:
        trace: The network's channels, predictor included. Those that may not be cut have no readers here, and cost the
            same however many of them a selection keeps.
        names: Name of each group; unlike those of the layout, no two are alike.
        is_whole: bool [G], the groups that are always kept whole.
        doubtful: By name of a group that is kept whole, why; the class logits are not among them.
        parameters: The network's number of parameters as a function of the channel counts, in the form of a cost in
            FLOPs.
        sides: int64 [g, n] each: the channel behind each input or each output of a layer, by group of a grouped
            convolution (one for all other layers); -1 for what always stays.
    """

    trace: EncoderTrace
    names: tuple[str, ...]
    is_whole: Tensor
    doubtful: Mapping[str, str]
    parameters: FlopsModel
    sides: tuple[Tensor, ...]

    @property
    def layout(self) -> EncoderLayout:
        """The network's layout."""
        return self.trace.layout

    @cached_property
    def whole_channels(self) -> Tensor:
        """Bool [C]: the channels that always stay."""
        return self.is_whole[self.layout.group_of]

    @cached_property
    def divisors(self) -> Tensor:
        """int64 [G]: what the count of each group must be a multiple of, for the grouped convolutions around it."""
        found = torch.ones(len(self.names), dtype=torch.int64)
        for side in self.sides:
            if len(side) > 1:
                for group in groups_of(side, self.layout):
                    found[group] = torch.lcm(found[group], torch.tensor(len(side)))
        return found

    def completed(self, selection: Selection, order: Tensor) -> Selection:
        """Return a selection with what it lacks to be a network: the best of the channels that it drops.

        Args:
            selection: Any.
            order: float64 [C], the worth of each channel, which decides what is added.

        Returns:
            The smallest selection that holds it and all that must stay, keeps something of each input and output of
            every layer, and as much in each group of a grouped convolution.
        """
        mask = selection.mask | self.whole_channels
        while True:
            before = int(mask.sum())
            for side in self.sides:
                _even_(mask, side, order)
            if int(mask.sum()) == before:
                return Selection(mask)


def find_prunable(network: nn.Module, example: Inputs) -> Prunable:
    """Trace a whole network, and find what may be cut of it.

    Args:
        network: The network; it stays as it was.
        example: `[B, ...]`, an input; of floating point only its shape matters.

    Raises:
        ModelError: The network fails on the example, or has no parameters.
    """
    parameters = [name for name, each in network.named_parameters() if each.numel() and each.is_floating_point()]
    if not parameters:
        raise ModelError("the network has no parameters, so that there is nothing to cut")
    statistics = [
        f"{name}.{own}" if name else own
        for name, module in network.named_modules()
        if isinstance(module, NORMALISATION)
        for own, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point() and buffer.dim()
    ]
    trace = trace_groups(network, example, parameters=parameters, statistics=statistics)
    layout = trace.layout
    names = _unique([group.name for group in layout.groups])
    reasons = _reasons(network, trace)
    is_whole = torch.tensor([group in reasons for group in range(len(names))], dtype=torch.bool)
    whole = torch.cat([is_whole[layout.group_of], torch.ones(1, dtype=torch.bool)])
    readers = {name: channels.where(~whole[channels], -1) for name, channels in trace.readers.items()}
    readers = {name: channels for name, channels in readers.items() if bool((channels >= 0).any())}
    fixed = EncoderTrace(layout, _fixed(trace.flops, is_whole), readers, trace.doubtful)
    logits = _num_logits(network, example)
    doubtful = {
        names[group]: reason
        for group, reason in reasons.items()
        if reason != _UNREAD or layout.groups[group].size != logits
    }
    sizes = {name: each.shape for name, each in network.named_parameters()}
    parameter_model = _fixed(_size_model(network, trace, sizes), is_whole)
    return Prunable(fixed, names, is_whole, doubtful, parameter_model, _sides(network, fixed, whole))


def prunable_encoder(network: nn.Module, whole: Prunable, trace: EncoderTrace) -> tuple[Prunable, Tensor]:
    """Return what may be cut of an encoder as part of its whole network, in the encoder's own channels.

    Args:
        network: The whole network.
        whole: What may be cut of it.
        trace: The encoder's.

    Returns:
        The same of the encoder, whose `parameters` are the entries of its layout; and int64 [C of the whole network]:
        the encoder's channel of each, -1 for what has none there and always stays.
    """
    layout = trace.layout
    own = torch.full((whole.layout.num_channels,), -1)
    for name in layout.shapes:
        if name not in whole.layout.shapes:
            continue
        (dimension, channels), (along, theirs) = owned_along(layout, name), owned_along(whole.layout, name)
        if (dimension, len(channels)) == (along, len(theirs)):
            own[theirs] = channels
    own[whole.whole_channels] = -1
    may_go = torch.zeros(layout.num_channels, dtype=torch.bool)
    may_go[own[own >= 0]] = True
    is_whole = torch.tensor([not bool(may_go[g.first : g.first + g.size].all()) for g in layout.groups])
    stays = torch.cat([is_whole[layout.group_of], torch.ones(1, dtype=torch.bool)])
    own = own.where(~stays[own], -1)
    readers = {name: channels.where(~stays[channels], -1) for name, channels in trace.readers.items()}
    readers = {name: channels for name, channels in readers.items() if bool((channels >= 0).any())}
    fixed = EncoderTrace(layout, _fixed(trace.flops, is_whole), readers, trace.doubtful)
    read = torch.cat([own, torch.full((1,), -1)])
    sides = [read[side] for side in whole.sides]
    return Prunable(
        fixed, _unique([group.name for group in layout.groups]), is_whole, whole.doubtful,
        _fixed(_size_model(network, trace, layout.shapes), is_whole),
        tuple(side for side in sides if bool((side >= 0).any())),
    ), own  # fmt: skip


def groups_of(channels: Tensor, layout: EncoderLayout) -> list[int]:
    """Return the numbers of the groups that some channels belong to, ascending; -1 is no channel."""
    return sorted(set(layout.group_of[channels[channels >= 0]].tolist()))


def _reasons(network: nn.Module, trace: EncoderTrace) -> dict[int, str]:
    """Return why groups are kept whole, by their number."""
    layout = trace.layout
    read = torch.zeros(layout.num_channels, dtype=torch.bool)
    for channels in trace.readers.values():
        read[channels[channels >= 0]] = True
    reasons: dict[int, str] = {}
    for number, group in enumerate(layout.groups):
        if not bool(read[group.first : group.first + group.size].any()):
            reasons[number] = trace.doubtful.get(group.name, _UNREAD)
    owned: dict[str, list[Tensor]] = {}
    for name in layout.shapes:
        owned.setdefault(name.rpartition(".")[0], []).append(owned_along(layout, name)[1])
    for name, own in owned.items():
        reason = _why_whole(network, name, f"{name}.weight" in layout.shapes)
        if reason:
            read = trace.readers.get(name, torch.tensor([-1]))
            for number in groups_of(torch.cat([*own, read]), layout):
                reasons.setdefault(number, reason)
    return dict(sorted(reasons.items()))


def _why_whole(network: nn.Module, name: str, has_weight: bool) -> str | None:
    """Return why a module's own tensors cannot be made narrower, or None. Who reads shared ones is doubtful by then."""
    module = network.get_submodule(name)
    if not can_be_narrowed(module):
        if type(module).__module__.startswith("torch."):
            return f"layer {name}, a {type(module).__name__}, cannot be made narrower"
        return None  # a parameter of a user's own module, along one of its dimensions
    if isinstance(module, LAYERS) and not has_weight:
        return f"layer {name} computes its weight"
    if isinstance(module, OUTPUT_IN_DIMENSION_1) and getattr(module, "groups", 1) > 1:
        return f"layer {name} is a grouped transposed convolution"
    return None


def _sides(network: nn.Module, trace: EncoderTrace, whole: Tensor) -> tuple[Tensor, ...]:
    sides = []
    for name, layer in network.named_modules():
        if not isinstance(layer, LAYERS) or f"{name}.weight" not in trace.layout.shapes or is_depthwise(layer):
            continue
        outputs = owned_along(trace.layout, f"{name}.weight")[1]
        ids = [outputs.where(~whole[outputs], -1)]
        ids += [trace.readers[name]] if name in trace.readers else []
        num_groups = getattr(layer, "groups", 1)
        for side in ids:
            if len(side) % num_groups == 0 and bool((side >= 0).any()):
                sides.append(side.view(num_groups, -1))
    return tuple(sides)


def _even_(mask: Tensor, side: Tensor, order: Tensor) -> None:
    """Add channels to a mask until each group of a layer's side has as many, and some."""
    stays = torch.cat([mask, torch.ones(1, dtype=torch.bool)])[side]
    counts = stays.sum(1)
    wanted = max(1, int(counts.max()))
    for row, count in zip(side, counts.tolist(), strict=True):
        if count < wanted:
            dropped = torch.tensor(sorted(set(row[(row >= 0) & ~mask[row]].tolist())))
            best = dropped[order[dropped].argsort(descending=True, stable=True)]
            mask[best[: wanted - count]] = True


def _fixed(model: FlopsModel, is_whole: Tensor) -> FlopsModel:
    """Return a cost model in which some groups cost the same however many channels of them are kept."""
    whole, rest = model.sizes * is_whole, (~is_whole).to(torch.float64)
    return replace(
        model,
        outputs=model.outputs * rest, inputs=model.inputs * rest,
        fixed_outputs=model.fixed_outputs + model.outputs @ whole,
        fixed_inputs=model.fixed_inputs + model.inputs @ whole,
    )  # fmt: skip


def _size_model(network: nn.Module, trace: EncoderTrace, sizes: Mapping[str, torch.Size]) -> FlopsModel:
    """Return the number of entries of tensors: each is as large as the product of the shares of both sides kept."""
    layout = trace.layout
    shape = (len(sizes), len(layout.groups))
    outputs, inputs = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    widths = torch.ones(2, len(sizes), dtype=torch.int64)

    def count(channels: Tensor) -> Tensor:
        return torch.bincount(layout.group_of[channels[channels >= 0]], minlength=len(layout.groups))

    for row, name in enumerate(sizes):
        if name not in layout.shapes:
            continue
        channels = owned_along(layout, name)[1]
        outputs[row], widths[0, row] = count(channels), len(channels)
        layer_name, _, own = name.rpartition(".")
        layer = network.get_submodule(layer_name)
        if own == "weight" and layer_name in trace.readers and not is_depthwise(layer):
            inputs[row], widths[1, row] = count(trace.readers[layer_name]), layer_widths(layer)[1]
    return whole_flops_model([each.numel() for each in sizes.values()], layout.group_sizes, outputs, inputs, widths)


def _unique(names: list[str]) -> tuple[str, ...]:
    """Return names of which no two are alike: later ones get a number."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(found)


def _num_logits(network: nn.Module, example: Inputs) -> int:
    copy = duplicate(network).to("cpu").eval()
    with torch.no_grad():
        output = copy(first_of(example))
    return output.shape[-1] if isinstance(output, Tensor) and output.dim() else -1
