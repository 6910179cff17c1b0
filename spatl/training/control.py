"""SCAFFOLD-style control variates for a shared encoder whose clients send only some channels (DESIGN 2.2).

A client adds c - c_i to the encoder's gradients (SCAFFOLD, Karimireddy et al. 2020, eq. 3) and re-estimates c_i from
what it sent (their option II). The estimate divides the update by what its steps really added up to, which is K times
the learning rate only for plain SGD.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from spatl.channels.layout import EncoderLayout
from spatl.channels.vectors import parts_of
from spatl.wire.protocol import Update

GradientHook = Callable[[Mapping[str, nn.Parameter]], None]
"""Changes the gradients of named parameters in place, after the backward pass and before the optimizer's step."""


class StepWeight:
    """Accumulates a = the sum of the coefficients with which each step's gradient enters the final displacement.

    The optimizer is linear in the gradients, so `a` is how far one coordinate that starts at zero moves under a
    gradient of minus one: the recurrence of SGD with momentum, Nesterov momentum and weight decay is followed step by
    step, at each step's own learning rate (FedNova, Wang et al. 2020, section 3.1, generalised to schedules).
    """

    def __init__(self, *, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False) -> None:
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._nesterov = nesterov
        self._velocity: float | None = None
        self.value = 0.0

    def step(self, learning_rate: float) -> None:
        """Follow one optimizer step."""
        gradient = 1.0 - self._weight_decay * self.value
        velocity = gradient if self._velocity is None else self._momentum * self._velocity + gradient
        self._velocity = velocity
        self.value += learning_rate * (gradient + self._momentum * velocity if self._nesterov else velocity)


def correction_hook(control: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> GradientHook:
    """Return a hook that adds c - c_i to each named gradient (which moves to the gradient's device)."""
    elsewhere: dict[str, Tensor] = {}

    def correct(parameters: Mapping[str, nn.Parameter]) -> None:
        for name, values in control.items():
            gradient = parameters[name].grad
            if gradient is None:
                continue
            if gradient.device == values.device and gradient.dtype == values.dtype and gradient.is_contiguous():
                # Some entries at a time, so that the difference takes no memory between the steps, nor within one.
                flat, common, private = (each.view(-1) for each in (gradient, values, own[name]))
                for part in parts_of(len(flat)):
                    flat[part] += common[part] - private[part]
                continue
            if name not in elsewhere:
                elsewhere[name] = (values - own[name]).to(gradient.device, gradient.dtype)
            gradient.add_(elsewhere[name])

    return correct


def proximal_hook(reference: Mapping[str, Tensor], mu: float) -> GradientHook:
    """Return a hook that adds mu * (y - x), the gradient of FedProx's (mu / 2) * ||y - x||^2."""

    def pull(parameters: Mapping[str, nn.Parameter]) -> None:
        for name, values in reference.items():
            parameter = parameters[name]
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - values.to(parameter.device), alpha=mu)

    return pull


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


def fading(half_life: float | None, num_rounds: int) -> float:
    """The factor by which control variates fade in `num_rounds` server rounds; 1 for a `half_life` of None.

    c and every c_i fade alike, wherever they are, so that c stays the weighted sum of the c_i while what nobody
    refreshes is forgotten. (Correcting fresh channels only would do so too, but then option II no longer returns the
    gradient on the others, and their c_i grow without bound.)
    """
    return 1.0 if half_life is None else 0.5 ** (num_rounds / half_life)


def refresh_control(
    client_control: Tensor, control: Tensor, update: Update, layout: EncoderLayout, *, damping: float
) -> Tensor:
    """Return c_i after a round: c_i + rho * (-D_i / a_i - c) on the entries that were sent, c_i elsewhere.

    Args:
        client_control: float32 [P], c_i before the round.
        control: float32 [P], c as the client holds it.
        update: The update as the server decodes it.
        layout: The encoder.
        damping: rho in (0, 1]; 1 is SCAFFOLD's option II.

    Returns:
        float32 [P], a new tensor.
    """
    refreshed = client_control.clone()
    for part, kept, values in update.selection.value_parts(layout, layout.num_parameter_entries):
        own, common = refreshed[part], control[part]
        before, held = (own, common) if kept is None else (own[kept], common[kept])
        estimate = -update.values[values].to(torch.float64) / update.step_weight
        moved = (before.to(torch.float64) + damping * (estimate - held.to(torch.float64))).to(torch.float32)
        own[slice(None) if kept is None else kept] = moved  # a view
    return refreshed
