"""Trials of a network with some channels' producers changed: which readers' inputs change with them."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spatl.seeding import generator, seeded_globals
from spatl.tensors.inputs import Inputs, inputs_like, parts_of

NUM_INPUTS = 2

_SMALL = 2**15  # numbers in an input

_NOT_FIXED = "which layers it calls, and with what shapes, depends on numbers"

OUTPUT = "the model's output"


@dataclass(frozen=True, eq=False)
class Claims:
    """Claims of a dependency graph about a network.

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


class UnprovableError(Exception):
    """The network does not compute the same thing twice."""


def is_layer(module: nn.Module) -> bool:
    """Return whether a module is a convolution or linear layer that mixes channels; a depthwise one passes each on."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return not module.groups == module.out_channels > 1
    return isinstance(module, nn.Linear)


@dataclass(frozen=True)
class Place:
    """One call of a layer within a pass, or the model's output."""

    layer: str
    call: int


class Trials:
    """Passes of a network under changed parameters, and what they changed where."""

    def __init__(self, network: nn.Module, values: Mapping[str, Tensor], example: Inputs, claims: Claims) -> None:
        self.network = network
        self._example = example
        self.written = claims.written
        self._layers = {name: module for name, module in network.named_modules() if is_layer(module)}
        self.tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        self.values = values
        self._noise = torch.zeros(0)
        self._draw = generator(0, "proof of readings, inputs")

    def run(self, trial: int, changes: Tensor) -> dict[Place, Tensor]:
        """Return what changed against the unchanged network (bool [I, L] by place).

        Args:
            trial: Which random numbers to use.
            changes: Bool [L, C], the channels to change in each pass.
        """
        numbers = _Numbers(self, generator(trial, "proof of readings"))
        images = inputs_like(self._example, NUM_INPUTS, lambda shape: _uniform(shape, numbers.draw))
        base: dict[Place, Tensor] = {}
        patterns: dict[Place, Tensor] = {}

        def keep(place: Place, dimension: int, arrived: Tensor) -> None:
            base[place] = arrived.clone()
            patterns[place] = torch.zeros(arrived.shape[dimension], len(changes), dtype=torch.bool)

        def compare(place: Place, dimension: int, arrived: Tensor) -> None:
            if place not in missing or base[place].shape != arrived.shape:
                raise UnprovableError(_NOT_FIXED)
            missing.remove(place)
            changed = _changed(arrived, base[place], dimension)
            if row >= 0:
                patterns[place][:, row] = changed
            elif bool(changed.any()):
                raise UnprovableError("it does not compute the same thing twice")

        self._forward(images, numbers.buffers, trial, keep)
        # First of all nothing is changed, and nothing may change.
        for row in range(0 if trial else -1, len(changes)):
            if row >= 0:
                numbers.change(changes[row])
            missing = set(base)
            self._forward(images, numbers.buffers, trial, compare)
            if missing:
                raise UnprovableError(_NOT_FIXED)
        return patterns

    def _forward(
        self, images: Inputs, state: Mapping[str, Tensor], trial: int, watch: Callable[[Place, int, Tensor], None]
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
            watch(Place(name, calls[name]), arrived.dim() - 1 - spatial, arrived)
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
            watch(Place(OUTPUT, number), 0, tensor.reshape(1, -1))


class _Numbers:
    """The random numbers of one trial: those of the network, and those that take their place where channels change."""

    def __init__(self, trials: Trials, draw: torch.Generator) -> None:
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
def undisturbed(example: Inputs) -> Iterator[None]:
    """Keep attention in Python, where layers are called as such, and small inputs in one thread, which is faster."""
    fast_path, threads = torch.backends.mha.get_fastpath_enabled(), torch.get_num_threads()
    torch.backends.mha.set_fastpath_enabled(False)
    if sum(each.numel() for _, each in parts_of(example)) < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.set_num_threads(threads)
