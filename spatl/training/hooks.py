"""Hooks on gradients: what a method changes between the backward pass and the optimizer's step."""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor, nn

from spatl.channels.vectors import parts_of

_KEPT: Final = 1 << 14  # entries of a parameter whose difference is kept between the steps

GradientHook = Callable[[Mapping[str, nn.Parameter]], None]
"""Changes the gradients of named parameters in place, after the backward pass and before the optimizer's step."""


def correction_hook(control: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> GradientHook:
    """Return a hook that adds c - c_i to each named gradient (which moves to the gradient's device)."""
    differences: dict[str, Tensor] = {}

    def correct(parameters: Mapping[str, nn.Parameter]) -> None:
        corrected, added = list[Tensor](), list[Tensor]()
        for name, values in control.items():
            gradient = parameters[name].grad
            if gradient is None:
                continue
            is_here = gradient.device == values.device and gradient.dtype == values.dtype
            if is_here and gradient.is_contiguous() and values.numel() > _KEPT:
                # Some entries at a time, so that the difference takes no memory between the steps, nor within one.
                flat, common, private = (each.view(-1) for each in (gradient, values, own[name]))
                for part in parts_of(len(flat)):
                    flat[part] += common[part] - private[part]
                continue
            if name not in differences:
                differences[name] = (values - own[name]).to(gradient.device, gradient.dtype)
            corrected.append(gradient)
            added.append(differences[name])
        if corrected:
            torch._foreach_add_(corrected, added)

    return correct


def proximal_hook(reference: Mapping[str, Tensor], mu: float) -> GradientHook:
    """Return a hook that adds mu * (y - x), the gradient of FedProx's (mu / 2) * ||y - x||^2."""

    def pull(parameters: Mapping[str, nn.Parameter]) -> None:
        for name, values in reference.items():
            parameter = parameters[name]
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - values.to(parameter.device), alpha=mu)

    return pull


def linear_hook(own: Mapping[str, Tensor]) -> GradientHook:
    """Return a hook that takes g_i off each named gradient, the gradient of FedDyn's -<g_i, y>."""
    return _hook_with(own, torch.Tensor.sub_)


def masking_hook(kept: Mapping[str, Tensor]) -> GradientHook:
    """Return a hook that sets each named gradient to zero where its mask (1 or 0, the parameter's shape) says so."""
    return _hook_with(kept, torch.Tensor.mul_)


def _hook_with(values: Mapping[str, Tensor], change_: Callable[[Tensor, Tensor], object]) -> GradientHook:
    """A hook that changes each named gradient by a tensor of its own, moved to where the gradient is once."""
    placed: dict[str, Tensor] = {}

    def hook(parameters: Mapping[str, nn.Parameter]) -> None:
        for name, value in values.items():
            gradient = parameters[name].grad
            if gradient is not None:
                if name not in placed:
                    placed[name] = value.to(gradient.device, gradient.dtype)
                change_(gradient, placed[name])

    return hook
