"""Gradients of single examples with respect to filters, for a whole batch by one forward and one backward pass.

In eval mode the examples of a batch do not meet, so that the gradient of the summed loss with respect to the output of
a layer has each example's own. With x the patches that a convolution reads of an example, `[in * kernel, places]`, and
g that gradient, `[out, places]`, the gradient of its weight w is g x^T, and its inner product with w is that of g with
w x, the output without the bias. A linear layer is a convolution with patches of single values; a normalisation layer
reads its normalised input. Gradients are summed up by filter as they are made, in blocks that stay in a cache.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spatl.saliency.filters import Filters

_BLOCK_BYTES: Final = 2 * 2**20


class Unsupported(Exception):
    """A layer has no rule here, or was gone through in another way than its own `forward`."""


def filter_gradients(model: nn.Module, loss: Callable[[], Tensor], filters: Filters) -> tuple[Tensor, Tensor]:
    """Return, of each example and filter, the mean absolute gradient and the inner product of gradient and weight.

    Args:
        model: The network in eval mode.
        loss: Goes through the network, whose every layer sees a batch [B, ...], and returns the sum over the examples.
        filters: Of the network.

    Returns:
        Both `[B, F]`, on the network's device and in its dtype.

    Raises:
        Unsupported: Gradients of single examples cannot be had like this.
    """
    modules = dict(model.named_modules())
    if missing := [layer.name for layer in filters.layers if _rule_of(modules[layer.name]) is None]:
        raise Unsupported(f"no rule for layer {missing[0]!r}, a {type(modules[missing[0]]).__name__}")
    layers = {layer.name: modules[layer.name] for layer in filters.layers}
    with _frozen(model), _tapped(layers) as calls:
        total = loss()
    if any(call.was_written_to for each in calls.values() for call in each):
        with _frozen(model), _tapped(layers, copies=True) as calls:
            total = loss()
    for layer in filters.layers:
        if len(calls[layer.name]) != 1:
            raise Unsupported(f"layer {layer.name!r} is gone through {len(calls[layer.name])} times by its own forward")
    taken = [calls[layer.name][0] for layer in filters.layers]
    gradients = torch.autograd.grad(total, [call.output for call in taken], allow_unused=True)
    absolute, signed = list[Tensor](), list[Tensor]()
    for layer, call, gradient in zip(filters.layers, taken, gradients, strict=True):
        module = modules[layer.name]
        if gradient is None:
            gradient = torch.zeros_like(call.output)
        rule = _rule_of(module)
        assert rule is not None
        found, made = _by_filter(module, gradient), _by_filter(module, _without_bias(module, call.output))
        absolute.append(rule(module, call.read, found))
        signed.append((found * made).sum(-1))
    return torch.cat(absolute, 1), torch.cat(signed, 1)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Ask for no gradient of a parameter inside the block: those of the layers' outputs are all that is needed."""
    trained = [each for each in model.parameters() if each.requires_grad]
    try:
        for each in trained:
            each.requires_grad_(False)
        yield
    finally:
        for each in trained:
            each.requires_grad_()


@dataclass(frozen=True, eq=False)
class _Call:
    read: Tensor
    output: Tensor
    versions: tuple[int, int]

    @property
    def was_written_to(self) -> bool:
        """Whether a later layer wrote into what this one read or returned."""
        return (self.read._version, self.output._version) != self.versions


@contextmanager
def _tapped(layers: dict[str, nn.Module], *, copies: bool = False) -> Iterator[dict[str, list[_Call]]]:
    """Yield, by layer, what each call read and returned inside the block.

    Args:
        layers: By name.
        copies: Whether both are copies, which no later layer writes into.
    """
    calls: dict[str, list[_Call]] = {name: [] for name in layers}

    def tap(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def keep(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:  # all before it is frozen
                output = output.detach().requires_grad_()
            read = inputs[0].detach().clone() if copies else inputs[0].detach()
            calls[name].append(_Call(read, output, (read._version, output._version)))
            return output.clone() if copies or output.is_leaf else output  # a leaf must not be written into

        return keep

    with ExitStack() as stack:
        for name, module in layers.items():
            stack.callback(module.register_forward_hook(tap(name)).remove)
        yield calls


def _by_filter(module: nn.Module, output: Tensor) -> Tensor:
    """Return a layer's output, or its gradient, as `[B, filters, places]`; a linear layer has its filters last."""
    last = output.dim() - 1 if isinstance(module, nn.Linear) else 1
    return output.detach().movedim(last, 1).reshape(len(output), output.shape[last], -1)


def _without_bias(module: nn.Module, output: Tensor) -> Tensor:
    if module.bias is None:
        return output
    bias = cast("Tensor", module.bias).detach()
    return output.detach() - (bias if isinstance(module, nn.Linear) else bias.reshape(-1, *[1] * (output.dim() - 2)))


def _of_convolution(module: nn.Module, read: Tensor, gradient: Tensor) -> Tensor:
    """Return the mean absolute gradient `[B, out]`, of gradients `[B, out, places]` with respect to the output."""
    convolution = cast("nn.Conv2d", module)
    groups, (number, out, places) = convolution.groups, gradient.shape
    width = convolution.weight[0].numel()
    at_once = max(1, _BLOCK_BYTES // (gradient.element_size() * width * max(places * groups, 1)))
    found = gradient.new_empty(number, out)
    for start in range(0, number, at_once):
        part = slice(start, start + at_once)
        patches = _patches(convolution, read[part]).reshape(-1, width, places)
        own = gradient[part].reshape(len(patches), out // groups, places)
        found[part] = _absolute_means(own, patches).reshape(-1, out)
    return found


def _absolute_means(gradients: Tensor, patches: Tensor) -> Tensor:
    """Return the mean absolute value of each row of g x^T, `[B, rows]`, for g `[B, rows, L]` and x `[B, V, L]`."""
    number, rows, _ = gradients.shape
    width = patches.shape[1]
    if patches.shape[2] == 1:  # the product of two vectors
        return gradients[:, :, 0].abs() * patches[:, :, 0].abs().mean(1, keepdim=True)
    found, at_once = gradients.new_empty(number, rows), max(1, _BLOCK_BYTES // (gradients.element_size() * width))
    if number * rows <= at_once:
        return (gradients @ patches.mT).abs_().mean(-1)
    for place in range(number):
        for start in range(0, rows, at_once):
            part = slice(start, start + at_once)
            found[place, part] = (gradients[place, part] @ patches[place].mT).abs_().mean(-1)
    return found


def _patches(convolution: nn.Conv2d, read: Tensor) -> Tensor:
    """Return what a convolution in one or two dimensions reads, `[B, in * kernel, places]`."""
    amounts = list(convolution._reversed_padding_repeated_twice)
    if any(amounts):
        mode = "constant" if convolution.padding_mode == "zeros" else convolution.padding_mode
        read = F.pad(read, amounts, mode=mode)
    sizes = [convolution.kernel_size, convolution.dilation, convolution.stride]
    if read.dim() == 3:
        read, sizes = read[:, :, None], [(1, each[0]) for each in sizes]
    kernel, dilation, stride = sizes
    shape = [(read.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    steps = read.stride()
    windows = read.as_strided(
        (*read.shape[:2], *kernel, *shape),
        (
            steps[0],
            steps[1],
            *(steps[2 + i] * dilation[i] for i in (0, 1)),
            *(steps[2 + i] * stride[i] for i in (0, 1)),
        ),
        read.storage_offset(),
    )
    return windows.reshape(len(read), -1, shape[0] * shape[1])


def _of_linear(module: nn.Module, read: Tensor, gradient: Tensor) -> Tensor:
    return _absolute_means(gradient, read.reshape(len(read), -1, read.shape[-1]).mT)


def _of_normalisation(module: nn.Module, read: Tensor, gradient: Tensor) -> Tensor:
    if isinstance(module, nn.GroupNorm):
        normalised = F.group_norm(read, module.num_groups, eps=module.eps)
    else:
        layer = cast("_BatchNorm", module)
        if layer.running_mean is None or layer.running_var is None:
            raise Unsupported("a normalisation layer without running statistics looks at the whole batch")
        normalised = F.batch_norm(read, layer.running_mean, layer.running_var, eps=layer.eps)
    return (gradient * normalised.reshape(gradient.shape)).sum(-1).abs()


_Rule = Callable[[nn.Module, Tensor, Tensor], Tensor]


def _rule_of(module: nn.Module) -> _Rule | None:
    if isinstance(module, nn.Conv2d | nn.Conv1d):
        return _of_convolution
    if isinstance(module, nn.Linear):
        return _of_linear
    return _of_normalisation if isinstance(module, _BatchNorm | nn.GroupNorm) else None
