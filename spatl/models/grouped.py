"""Networks side by side: several of one structure as a single program, each with weights of its own.

A small network leaves most of a processor's time between its operations. Several of them are one network whose layers
have so many groups: a convolution of G times the channels in G groups, a BatchNorm of G times the channels, G products
of matrices in one. What a layer without parameters does to each channel, or to all of an example in their order, it
does to the channels of each network alike. Whether that holds of a whole network is not proven from its code but
tried, in float64 (`check_grouped`): outputs, gradients and running statistics are those of each network alone.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatl.errors import ModelError
from spatl.models.copies import duplicate
from spatl.models.frozen import is_frozen

LARGEST: Final = 1 << 24
"""Parameters of a network that is trained beside others; one that is larger gains nothing, and takes their memory."""

_TRIED: Final = 3  # networks that are tried side by side
_EXAMPLES: Final = 4
_TOLERANCE: Final = 1e-9  # of float64, relative to the largest entry
_CONVOLUTIONS: Final = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
_BATCH_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_RANDOM: Final = (nn.modules.dropout._DropoutNd, nn.RReLU)


class _Layer(nn.Module):
    """A layer of several networks side by side; `tensors` are those of the networks that work now, one after another.

    Args:
        layer: The layer of one network, whose settings count.
        prefix: What its tensors' names begin with.
    """

    def __init__(self, layer: nn.Module, prefix: str) -> None:
        super().__init__()
        self.settings = layer.__dict__
        self.prefix = prefix
        self.number = 0
        self.tensors: dict[str, Tensor] = {}

    def take(self, tensors: Mapping[str, Tensor], number: int) -> None:
        """Work with those of the tensors that are the layer's, of so many networks."""
        own = [name for kind in ("_parameters", "_buffers") for name in self.settings[kind]]
        self.tensors = {name: tensors[self.prefix + name] for name in own if self.prefix + name in tensors}
        self.number = number


class _Convolution(_Layer):
    def __init__(self, layer: nn.Module, prefix: str) -> None:
        super().__init__(layer, prefix)
        self.convolve = _CONVOLUTIONS[type(layer)]  # type: ignore[index]

    def forward(self, inputs: Tensor) -> Tensor:
        own = self.settings
        return self.convolve(
            inputs, self.tensors["weight"], self.tensors.get("bias"), own["stride"], own["padding"], own["dilation"],
            own["groups"] * self.number,
        )  # fmt: skip


class _BatchNorm(_Layer):
    def forward(self, inputs: Tensor) -> Tensor:
        return F.batch_norm(
            inputs, self.tensors.get("running_mean"), self.tensors.get("running_var"), self.tensors.get("weight"),
            self.tensors.get("bias"), True, self.settings["momentum"], self.settings["eps"],
        )  # fmt: skip


class _GroupNorm(_Layer):
    def forward(self, inputs: Tensor) -> Tensor:
        groups = self.settings["num_groups"] * self.number
        return F.group_norm(inputs, groups, self.tensors.get("weight"), self.tensors.get("bias"), self.settings["eps"])


class _Linear(_Layer):
    def forward(self, inputs: Tensor) -> Tensor:
        """From [B, G * inputs] to [B, G * outputs]."""
        apart = inputs.view(len(inputs), self.number, -1).transpose(0, 1)
        weight = self.tensors["weight"].view(self.number, -1, apart.shape[2]).transpose(1, 2)
        if (bias := self.tensors.get("bias")) is None:
            outputs = torch.bmm(apart, weight)
        else:
            outputs = torch.baddbmm(bias.view(self.number, 1, -1), apart, weight)
        return outputs.transpose(0, 1).flatten(1)


_LAYERS: Final[Mapping[type[nn.Module], type[_Layer]]] = {
    **dict.fromkeys(_CONVOLUTIONS, _Convolution), **dict.fromkeys(_BATCH_NORMS, _BatchNorm),
    nn.GroupNorm: _GroupNorm, nn.Linear: _Linear,
}  # fmt: skip


class GroupedNetwork:
    """Network of several of one structure side by side, in training mode.

    Args:
        model: A network of the structure.
        number: How many members there are (G).
        trained: Names of the parameters that get gradients.
        like: A member, on the device and in memory as all of them; the network itself if not given. Its weights are no
            member's yet.

    Attributes:
        members: Each member's parameters by name, as parts of what all of them share.

    Raises:
        ModelError: A layer is none that can stand beside others.
    """

    def __init__(self, model: nn.Module, number: int, trained: Sequence[str], *, like: nn.Module | None = None) -> None:
        check_layers(model)
        self._number, self._trained = number, list(trained)
        self._network = duplicate(model)
        self._layers = _replaced_(self._network)
        self._network.train()
        like = model if like is None else like
        self._parameters = {name: _room(each, number) for name, each in like.named_parameters()}
        self._buffers = {name: _room(each, number) for name, each in like.named_buffers() if each.dim()}
        self.members = self._apart(self._parameters)
        self._member_buffers = self._apart(self._buffers)
        self._leaves: dict[tuple[int, int], dict[str, Tensor]] = {}

    def load(self, member: int, model: nn.Module) -> None:
        """Make a member what a network is by now."""
        with torch.no_grad():
            _copy(self.members[member], dict(model.named_parameters()))
            _copy(self._member_buffers[member], dict(model.named_buffers()))

    def put_back_(self, member: int, model: nn.Module, *, num_steps: int) -> None:
        """Make a network what a member is by now, after so many calls, in place."""
        with torch.no_grad():
            _copy(dict(model.named_parameters()), self.members[member])
            buffers = dict(model.named_buffers())
            _copy({name: buffers[name] for name in self._buffers}, self._member_buffers[member])
            for name in buffers.keys() - self._buffers.keys():  # BatchNorm's count of its batches
                buffers[name] += num_steps

    def outputs(self, first: int, inputs: Sequence[Tensor]) -> Tensor:
        """Return the outputs of some members, which follow one another, each for inputs of its own.

        Args:
            first: The first of them.
            inputs: Of each, float [B, C, ...].

        Returns:
            float [B, members, K].
        """
        leaves, number = self._of(first, first + len(inputs)), len(inputs)
        for layer in self._layers:
            layer.take(leaves, number)
        outputs: Tensor = self._network(inputs[0] if number == 1 else torch.cat(list(inputs), dim=1))
        return outputs.view(len(outputs), number, -1)

    def backward(self, loss: Tensor, first: int, number: int) -> dict[str, Tensor]:
        """Differentiate a loss of the last outputs, those of so many members.

        Returns:
            The trained parameters of these members by name, one after another along the first dimension, each with its
            gradient.
        """
        leaves = self._of(first, first + number)
        trained = {name: leaves[name] for name in self._trained}
        for leaf in trained.values():
            leaf.grad = None
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return trained

    def hand_out_gradients(self, first: int, number: int) -> None:
        """Put at each of so many members its part of the gradients of `backward`: changed in place, they change."""
        for name in self._trained:
            gradient = self._of(first, first + number)[name].grad
            parts = [None] * number if gradient is None else gradient.tensor_split(number)
            for member, part in enumerate(parts, start=first):
                self.members[member][name].grad = part

    def zeros(self) -> dict[str, Tensor]:
        """Return zeros for each trained parameter of all members."""
        return {name: torch.zeros_like(self._parameters[name]) for name in self._trained}

    def between(self, tensors: Mapping[str, Tensor], first: int, end: int) -> dict[str, Tensor]:
        """Return what is some members' of tensors for all of them, as parts of these."""
        return {name: _between(each, first, end, self._number) for name, each in tensors.items()}

    def _of(self, first: int, end: int) -> dict[str, Tensor]:
        """Return the tensors of some members, each a leaf of the graphs to come."""
        if (first, end) not in self._leaves:
            tensors = {**self._parameters, **self._buffers}
            found = self.between(tensors, first, end)
            for name in self._trained:
                found[name].requires_grad_()
            self._leaves[first, end] = found
        return self._leaves[first, end]

    def _apart(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        return [self.between(tensors, member, member + 1) for member in range(self._number)]


def _room(tensor: Tensor, number: int) -> Tensor:
    """Room for so many tensors like one, one after another along the first dimension, in memory as it lies."""
    template = tensor.detach()
    return torch.cat([template] * number)


def _between(tensor: Tensor, first: int, end: int, number: int) -> Tensor:
    """Members of a shared tensor, as a part of its memory."""
    each = len(tensor) // number
    return tensor.detach()[first * each : end * each]


def _copy(into: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    if into:
        torch._foreach_copy_(list(into.values()), [values[name].detach() for name in into])


def _replaced_(network: nn.Module) -> list[_Layer]:
    """Put layers for several networks in the place of those of one; return them."""
    found = []
    for name, layer in list(network.named_modules()):
        if type(layer) in _LAYERS:
            grouped = _LAYERS[type(layer)](layer, f"{name}." if name else "")
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, grouped)
            found.append(grouped)
    return found


def check_layers(model: nn.Module) -> None:
    """Raise where a layer of a network cannot stand beside those of others.

    Raises:
        ModelError: There is such a layer; the first is named.
    """
    modules = dict(model.named_modules())
    for name, module in model.named_modules(remove_duplicate=False):
        fault = "" if name in modules else "is another layer too"
        fault = fault or _fault_of(name, module)
        if fault:
            raise ModelError(
                f"training.group_size: clients of this network cannot train as one program, for its layer {name!r} "
                f"({type(module).__name__}) {fault}; set it to 1"
            )


def _fault_of(name: str, module: nn.Module) -> str:
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if isinstance(module, _RANDOM):
        return "draws random numbers"
    if is_frozen(module) or not all(each.requires_grad for each in module.parameters(recurse=False)):
        return "is frozen"
    if not tensors:
        return ""
    if type(module) not in _LAYERS or not name:
        return f"has parameters or buffers and is none of {', '.join(sorted(each.__name__ for each in _LAYERS))}"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"has padding_mode {module.padding_mode!r}"
    if isinstance(module, _BATCH_NORMS) and module.momentum is None:
        return "averages all batches (momentum None)"
    return ""


def check_grouped(model: nn.Module, inputs: Tensor) -> None:
    """Raise unless networks of this structure do side by side what each does alone, in float64.

    Args:
        model: One of them.
        inputs: float [N, ...], N at least 1: examples, of which only shape and place count.

    Raises:
        ModelError: It is too large, a layer cannot, or outputs, gradients or running statistics are others.
    """
    if (number := sum(each.numel() for each in model.parameters())) > LARGEST:
        raise ModelError(
            f"training.group_size: clients train networks of up to {LARGEST:,} parameters as one program, this one has "
            f"{number:,}; set it to 1"
        )
    check_layers(model)
    random = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    alone = [duplicate(model).double() for _ in range(_TRIED)]
    grouped = GroupedNetwork(alone[0], _TRIED, [name for name, _ in model.named_parameters()])
    for member, each in enumerate(alone):
        each.train()
        with torch.no_grad():
            for parameter in each.parameters():
                parameter.add_(drawn(*parameter.shape), alpha=0.1)
        grouped.load(member, each)
    batches = [drawn(_EXAMPLES, *inputs.shape[1:]) for _ in range(_TRIED)]
    try:
        together = grouped.outputs(0, batches)
        separate = torch.stack([each(batch) for each, batch in zip(alone, batches, strict=True)], 1)
        weights = drawn(*separate.shape)
        grouped.backward((together * weights).sum(), 0, _TRIED)
        torch.autograd.backward((separate * weights).sum())
    except Exception as error:
        raise ModelError(_mixes(f"{type(error).__name__}: {error}")) from error
    grouped.hand_out_gradients(0, _TRIED)
    pairs: list[tuple[Tensor | None, Tensor | None]] = [(together, separate)]
    for member, each in enumerate(alone):
        pairs += [(grouped.members[member][name].grad, parameter.grad) for name, parameter in each.named_parameters()]
        copy = duplicate(each)
        grouped.put_back_(member, copy, num_steps=0)
        pairs += zip(copy.buffers(), each.buffers(), strict=True)
    if not all(_are_equal(found, wanted) for found, wanted in pairs):
        raise ModelError(_mixes("side by side outputs or gradients are others"))


def _are_equal(found: Tensor | None, wanted: Tensor | None) -> bool:
    if found is None or wanted is None:
        return found is wanted
    largest = float(wanted.detach().abs().max()) if wanted.numel() else 0.0
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=0, atol=_TOLERANCE * (1 + largest))


def _mixes(fault: str) -> str:
    return (
        "training.group_size: clients of this network cannot train as one program, for its forward pass mixes the "
        f"channels of all of them: {fault}; set it to 1"
    )
