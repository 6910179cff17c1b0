"""Proof of channel readings: which layers read which channels, seen on random inputs rather than taken on trust.

A dependency graph computes indices; where a network reorders, splits or mixes channels (a flip, a channel shuffle, a
transposed view, gating by halves, LayerNorm) they may be those of other channels, without an error. So every claim is
tried on a copy. Some channels have all that writes them changed at once: slices of weights and biases, BatchNorm. The
inputs of exactly the layers that are said to read these channels must change, at exactly the places that are said.

Every layer goes on with the same random input whatever arrives, so that a change is seen by the first layers behind
it and by no later one. That makes one pass a trial of half of all channels at once: each has a code of its own that
says in which passes it is changed, and a place that reads one channel changes in the passes of that code and in no
other. All codes hold as many passes, so that none is part of another. The number of passes grows with the logarithm
of the number of channels; memory is that of one copy of the parameters and of the activations of two inputs.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from spatl.seeding import generator, seeded_globals

NUM_INPUTS = 2
_FEWEST_TRIALS, _MOST_TRIALS = 2, 12
_FEWEST_PASSES = 12
_SMALL = 2**15  # numbers in an input
_NOT_FIXED = "which layers it calls, and with what shapes, depends on numbers"

OUTPUT = "the model's output"


@dataclass(frozen=True, eq=False)
class Claims:
    """What a dependency graph says of a network.

    Attributes:
        group_of: int64 [C], the group of each channel, -1 where nothing is claimed of it; what fails for one channel
            fails for its group.
        written: By name of a parameter or buffer, the dimension along which channels write it, and int64 [length] the
            channel of each place along it, -1 for none.
        read: int64 [I] by name of a layer, the channel behind each of its inputs, -1 for none. Layers that are not
            named are claimed to read nothing.
    """

    group_of: Tensor
    written: Mapping[str, tuple[int, Tensor]]
    read: Mapping[str, Tensor]


class _Unprovable(Exception):
    """The network does not compute the same thing twice."""


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a convolution or linear layer that mixes channels; a depthwise one passes each on."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return not module.groups == module.out_channels > 1
    return isinstance(module, nn.Linear)


def refuted(network: nn.Module, values: Mapping[str, Tensor], example: Tensor, claims: Claims) -> dict[int, str]:
    """Try all claims, and return why the groups that fail do.

    Args:
        network: A copy on the CPU in eval mode that may be spoilt: its parameters become random.
        values: Its parameters and buffers by name as they were, whose size and sign the random ones take.
        example: [1, ...], an input it accepts; only its shape matters where it is of floating point.
        claims: What to prove. A group without a reader may change the model's output, but no layer's input.

    Returns:
        The reason by group, in the order of groups; nothing where all is proved. It is a function of the arguments.
    """
    groups = sorted(set(claims.group_of.tolist()) - {-1})
    if not groups:
        return {}
    try:
        with _undisturbed(example), torch.no_grad():
            return dict(sorted(_refuted(_Trials(network, values, example, claims), claims, groups).items()))
    except Exception as error:  # whatever a user's forward makes of random numbers
        reason = f"the model cannot be tried on random numbers: {' '.join(str(error).split())}"
        return dict.fromkeys(groups, reason)


def _refuted(trials: "_Trials", claims: Claims, groups: Sequence[int]) -> dict[int, str]:
    group_of, faults = claims.group_of, _Faults()
    with_readers = {group for read in claims.read.values() for group in group_of[read[read >= 0]].tolist()}
    # What fails is taken out, until what is left is proved with nothing else changing.
    while left := with_readers - faults.groups.keys():
        kept = torch.isin(group_of, torch.tensor(sorted(left)))
        known = torch.cat([kept, torch.zeros(1, dtype=torch.bool)])
        own = replace(claims, read={name: read.where(known[read], -1) for name, read in claims.read.items()})
        wrong = _try_together_(faults, trials, own, kept)
        if left & faults.groups.keys():
            continue
        if not wrong:
            break
        _judge_(faults, trials, own, sorted(left), wrong, may_reach_output=False)
    rest = [group for group in groups if group not in with_readers]
    everything = torch.isin(group_of, torch.tensor(rest, dtype=torch.int64))[None]
    for trial in range(_FEWEST_TRIALS if rest else 0):
        reached = {place: pattern[:, 0] for place, pattern in trials.run(trial, everything).items()}
        wrong = {place: odd for place, odd in reached.items() if place.layer != OUTPUT and bool(odd.any())}
        if wrong:
            _judge_(faults, trials, claims, rest, wrong, may_reach_output=True)
            break
    return faults.told()


def _try_together_(faults: "_Faults", trials: "_Trials", claims: Claims, channels: Tensor) -> dict["_Place", Tensor]:
    """Try all claims of some channels (bool [C]) at once, until a trial finds faults.

    Returns:
        Bool [I] by place, what changed that none of them is said to change, where there is any.
    """
    group_of = claims.group_of
    wrong: dict[_Place, Tensor] = {}
    seen: dict[_Place, Tensor] = {}
    for trial in range(_MOST_TRIALS):
        codes = _codes(len(group_of), trial) & channels[:, None]
        for place, pattern in trials.run(trial, codes.T).items():
            read = _read(claims, place, pattern)
            # Index -1, an input that is no channel, reads the appended code of a channel that is never changed.
            expected = torch.cat([codes, torch.zeros(1, codes.shape[1], dtype=torch.bool)])[read]
            odd = (pattern & ~expected).any(1)
            for group in group_of[read[odd & (read >= 0)]].tolist():
                faults.add(group, "other channels reach {} than the graph says", place.layer)
            wrong[place] = wrong.get(place, torch.zeros_like(odd)) | odd
            seen[place] = seen.get(place, read < 0) | pattern.any(1)
        if not faults.groups.keys().isdisjoint(group_of[channels].tolist()):
            return {}
        if trial + 1 >= _FEWEST_TRIALS and all(bool(known.all()) for known in seen.values()):
            break
    for layer, read in claims.read.items():
        calls = [known for place, known in seen.items() if place.layer == layer]
        missing = ~torch.stack(calls).all(0) if calls else read >= 0
        for group in group_of[read[missing & (read >= 0)]].tolist():
            faults.add(group, "they were not seen to reach {}", layer)
    return {place: odd for place, odd in wrong.items() if bool(odd.any())}


def _judge_(
    faults: "_Faults", trials: "_Trials", claims: Claims, groups: Sequence[int], wrong: Mapping["_Place", Tensor], *,
    may_reach_output: bool,
) -> None:  # fmt: skip
    """Change groups one at a time, to see which of them changed what they are not said to change.

    Args:
        faults: Where to write it.
        trials: The network.
        claims: What is said.
        groups: Who may have done it.
        wrong: Bool [I] by place, what somebody was seen to change who should not.
        may_reach_output: Whether the model's output may change, as by the logits, which nobody reads.
    """
    changes = torch.stack([claims.group_of == group for group in groups])
    open_places = {place: odd.clone() for place, odd in wrong.items()}
    caught_at: set[_Place] = set()
    for trial in range(_FEWEST_TRIALS, 3 * _FEWEST_TRIALS):
        for place, pattern in trials.run(trial, changes).items():
            owners = torch.cat([claims.group_of, torch.tensor([-1])])[_read(claims, place, pattern)]
            for row, group in enumerate(groups):
                odd = pattern[:, row] & (owners != group)
                if not bool(odd.any()) or (place.layer == OUTPUT and may_reach_output):
                    continue
                faults.add(group, "they reach {} otherwise than the graph says", place.layer)
                for other in set(owners[odd].tolist()) - {-1}:
                    faults.add(other, "other channels reach {} than the graph says", place.layer)
                if place in open_places:
                    open_places[place] &= ~odd
                    caught_at.add(place)
        if not any(bool(odd.any()) for odd in open_places.values()):
            break
    for place in open_places.keys() - caught_at:  # nobody can be shown to have done it, so that nobody is cleared
        for group in groups:
            faults.add(group, "they may reach {} as well", place.layer)


def _read(claims: Claims, place: "_Place", pattern: Tensor) -> Tensor:
    """int64 [I]: the channel that each input is claimed to be, -1 for none."""
    read = claims.read.get(place.layer)
    return torch.full((len(pattern),), -1) if read is None else read


class _Faults:
    """Why groups fail: the layers by what is wrong with them, by group."""

    def __init__(self) -> None:
        self.groups: dict[int, dict[str, list[str]]] = {}

    def add(self, group: int, what: str, layer: str) -> None:
        layers = self.groups.setdefault(group, {}).setdefault(what, [])
        if layer not in layers:
            layers.append(layer)

    def told(self) -> dict[int, str]:
        return {
            group: ", ".join(what.format(_listed(layers)) for what, layers in whats.items())
            for group, whats in self.groups.items()
        }


def _listed(layers: Sequence[str]) -> str:
    return " and ".join(layer if layer == OUTPUT else f"layer {layer}" for layer in layers)


def _codes(num_channels: int, trial: int) -> Tensor:
    """Bool [C, L]: in which passes of a trial each channel is changed, half of them. No two channels share two codes.

    Trials come in pairs, whose codes together are different for all channels.
    """
    length = _FEWEST_PASSES
    while math.comb(length, length // 2) ** 2 < 64 * num_channels:
        length += 2
    draw = generator(trial // 2, "proof of readings, codes")
    codes = torch.zeros(num_channels, 2, length, dtype=torch.bool)
    todo = torch.arange(num_channels)
    while len(todo):
        halves = torch.rand(len(todo), 2, length, generator=draw).argsort(2)[:, :, : length // 2]
        codes[todo] = torch.zeros(len(todo), 2, length, dtype=torch.bool).scatter_(2, halves, True)
        taken: set[tuple[bool, ...]] = set()
        again = []
        for channel, code in enumerate(map(tuple, codes.flatten(1).tolist())):
            again += [channel] if code in taken else []
            taken.add(code)
        todo = torch.tensor(again, dtype=torch.int64)
    return codes[:, trial % 2]


@dataclass(frozen=True)
class _Place:
    """One call of a layer within a pass, or the model's output."""

    layer: str
    call: int


class _Trials:
    """Passes of a network under changed parameters, and what they changed where."""

    def __init__(self, network: nn.Module, values: Mapping[str, Tensor], example: Tensor, claims: Claims) -> None:
        self.network = network
        self._example = example
        self.written = claims.written
        self._layers = {name: module for name, module in network.named_modules() if is_layer(module)}
        self.tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        self.values = values
        self._noise = torch.zeros(0)
        self._draw = generator(0, "proof of readings, inputs")

    def run(self, trial: int, changes: Tensor) -> dict[_Place, Tensor]:
        """Return what changed against the unchanged network (bool [I, L] by place).

        Args:
            trial: Which random numbers to use.
            changes: Bool [L, C], the channels to change in each pass.
        """
        numbers = _Numbers(self, generator(trial, "proof of readings"))
        images = self._example.expand(NUM_INPUTS, *self._example.shape[1:])
        if images.is_floating_point():
            images = _uniform(images.shape, numbers.draw).to(images.dtype)
        base: dict[_Place, Tensor] = {}
        patterns: dict[_Place, Tensor] = {}

        def keep(place: _Place, dimension: int, arrived: Tensor) -> None:
            base[place] = arrived.clone()
            patterns[place] = torch.zeros(arrived.shape[dimension], len(changes), dtype=torch.bool)

        def compare(place: _Place, dimension: int, arrived: Tensor) -> None:
            if place not in missing or base[place].shape != arrived.shape:
                raise _Unprovable(_NOT_FIXED)
            missing.remove(place)
            changed = _changed(arrived, base[place], dimension)
            if row >= 0:
                patterns[place][:, row] = changed
            elif bool(changed.any()):
                raise _Unprovable("it does not compute the same thing twice")

        self._forward(images, numbers.buffers, trial, keep)
        # First of all nothing is changed, and nothing may change.
        for row in range(0 if trial else -1, len(changes)):
            if row >= 0:
                numbers.change(changes[row])
            missing = set(base)
            self._forward(images, numbers.buffers, trial, compare)
            if missing:
                raise _Unprovable(_NOT_FIXED)
        return patterns

    def _forward(
        self, images: Tensor, state: Mapping[str, Tensor], trial: int, watch: Callable[[_Place, int, Tensor], None]
    ) -> None:
        """Run a pass; `watch` is told of all that arrives at a layer, and at the end of the output."""
        for name, buffer in self.network.named_buffers():
            buffer.copy_(state[name])
        calls = Counter[str]()
        names = {layer: name for name, layer in self._layers.items()}

        def arrive(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            name = names[layer]
            arrived = inputs[0] if inputs else named["input"]
            spatial = 0 if isinstance(layer, nn.Linear) else layer.weight.dim() - 2  # type: ignore[operator]
            watch(_Place(name, calls[name]), arrived.dim() - 1 - spatial, arrived)
            # Another part of the same numbers for every call, so that no two calls cancel.
            start = 101 * calls.total()
            calls[name] += 1
            if start + arrived.numel() > len(self._noise):
                self._noise = torch.cat([self._noise, _uniform(torch.Size([start + arrived.numel()]), self._draw)])
            instead = self._noise[start : start + arrived.numel()].view(arrived.shape).to(arrived.dtype, copy=True)
            return ((instead, *inputs[1:]), named) if inputs else (inputs, {**named, "input": instead})

        handles = [
            layer.register_forward_pre_hook(arrive, with_kwargs=True, prepend=True) for layer in self._layers.values()
        ]
        try:
            with seeded_globals(trial, "proof of readings"):
                output = self.network(images)
        finally:
            for handle in handles:
                handle.remove()
        for number, tensor in enumerate(_tensors_in(output)):
            watch(_Place(OUTPUT, number), 0, tensor.reshape(1, -1))


class _Numbers:
    """The random numbers of one trial: those of the network, and those that take their place where channels change."""

    def __init__(self, trials: _Trials, draw: torch.Generator) -> None:
        self.draw = draw
        self._trials = trials
        self._now = torch.zeros(0, dtype=torch.bool)
        self._others: dict[str, Tensor] = {}
        self._vectors: dict[str, Tensor] = {}
        parameters = {id(parameter) for parameter in trials.network.parameters()}
        for name, tensor in trials.tensors.items():
            value = self._value(name)
            shakes = tensor.is_floating_point() and (name in trials.written or id(tensor) in parameters)
            tensor.data.copy_(_shaken(value, draw) if shakes else value)
            if name in trials.written and tensor.dim() > 1:
                self._others[name] = _shaken(value, draw)
            elif name in trials.written:
                self._vectors[name] = tensor.detach().clone()
        # What a pass writes into its buffers is undone before the next.
        self.buffers = {name: tensor.detach().clone() for name, tensor in trials.network.named_buffers()}

    def change(self, channels: Tensor) -> None:
        """Give what writes some channels (bool [C]) other numbers, and all else its own ones."""
        toggled = self._chosen(channels ^ (self._now if len(self._now) else torch.zeros_like(channels)))
        chosen, self._now = self._chosen(channels), channels
        for name, (dimension, ids) in self._trials.written.items():
            here = self.buffers[name] if name in self.buffers else self._trials.tensors[name].data
            if name in self._vectors:  # others each time, so that a ReLU lets most channels through in some pass
                here.copy_(torch.where(chosen[ids], _shaken(self._value(name), self.draw), self._vectors[name]))
                continue
            places, other = toggled[ids].nonzero().squeeze(1), self._others[name]
            before = here.index_select(dimension, places)
            here.index_copy_(dimension, places, other.index_select(dimension, places))
            other.index_copy_(dimension, places, before)

    def _value(self, name: str) -> Tensor:
        return self._trials.values[name].detach().to("cpu")

    @staticmethod
    def _chosen(channels: Tensor) -> Tensor:
        return torch.cat([channels, torch.zeros(1, dtype=torch.bool)])  # index -1 is no channel


def _tensors_in(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors_in(value)
    elif isinstance(output, Sequence) and not isinstance(output, str):
        for value in output:
            yield from _tensors_in(value)


def _changed(arrived: Tensor, base: Tensor, dimension: int) -> Tensor:
    """Bool [I]: where along a dimension two tensors differ.

    The same numbers give the same bits, so that even what a network scales down to nearly nothing is seen.
    """
    return (arrived != base).transpose(0, dimension).flatten(1).any(1)


def _uniform(shape: torch.Size, draw: torch.Generator) -> Tensor:
    """Numbers of mean 0 and variance 1."""
    return (2 * torch.rand(shape, generator=draw) - 1) * math.sqrt(3)


def _shaken(tensor: Tensor, draw: torch.Generator) -> Tensor:
    """Random numbers of a tensor's signs, none of them 0 or tiny: what starts near zero would hide what it scales."""
    if bool((tensor >= 0).all()) and bool((tensor > 0).any()):  # a variance, a scale: it stays positive
        return (0.5 + torch.rand(tensor.shape, generator=draw)).to(tensor)
    # A bias is larger than what it is added to, and decides in which passes a ReLU lets its channel through.
    scale = 3.0 if tensor.dim() < 2 else 1 / math.sqrt(tensor[0].numel())
    return (scale * _uniform(tensor.shape, draw)).to(tensor)


@contextmanager
def _undisturbed(example: Tensor) -> Iterator[None]:
    """Keep attention in Python, where layers are called as such, and small inputs in one thread, which is faster."""
    fast_path, threads = torch.backends.mha.get_fastpath_enabled(), torch.get_num_threads()
    torch.backends.mha.set_fastpath_enabled(False)
    if example.numel() < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.set_num_threads(threads)
