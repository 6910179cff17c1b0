"""Optimizer of the server: the averaged update of a round as a gradient (Hsu et al. 2019; Reddi et al. 2021)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spatl.channels.layout import EncoderLayout
from spatl.channels.vectors import parts_of
from spatl.config.server_optimizer import ADAPTIVE, ServerOptimizerConfig


@dataclass(frozen=True, eq=False)
class Moments:
    """Memory of the server's optimizer.

    Attributes:
        steps: How many rounds it has moved the encoder in.
        first: float32 [P], the sum of the updates that momentum keeps, or the first moment of adam and yogi; entries
            that nobody sent rest.
        second: float32 [P], the second moment; None under momentum.
    """

    steps: int
    first: Tensor
    second: Tensor | None = None

    @classmethod
    def start(cls, settings: ServerOptimizerConfig, layout: EncoderLayout) -> "Moments | None":
        """Return the memory before the first round; None of plain SGD, which has none."""
        if settings.name == "sgd":
            return None
        zeros = torch.zeros(layout.num_parameter_entries)
        return cls(0, zeros, zeros.clone() if settings.name in ADAPTIVE else None)


def moved(
    before: Tensor, averaged: Tensor, sent: Tensor, moments: Moments, settings: ServerOptimizerConfig, *,
    learning_rate: float, layout: EncoderLayout,
) -> tuple[Tensor, Moments]:  # fmt: skip
    """Move the encoder by the optimizer's step along the averaged update, d = averaged - before.

    momentum (FedAvgM): m = beta m + d, x += eta m. adam: m = b1 m + (1 - b1) d, v = b2 v + (1 - b2) d^2, and with t
    rounds before and in this step x += eta sqrt(1 - b2^(t+1)) / (1 - b1^(t+1)) m / (sqrt(v) + tau); yogi: v -= (1 - b2)
    sign(v - d^2) d^2, x += eta m / (sqrt(v) + tau). These are the formulas of Flower 1.41, whose exponent is one more
    than the number of steps. Entries that nobody sent keep their bits and their moments, and statistics are the
    average: a step of any other kind could make a variance negative.

    Args:
        before: float32 [N], x before the round.
        averaged: float32 [N], the average of what the clients have made of it.
        sent: bool [C], the channels that a client sent; under privacy all of them.
        moments: The memory.
        settings: Which optimizer, and its constants.
        learning_rate: eta_g.
        layout: The shared encoder.

    Returns:
        x after the round, float32 [N], and the memory after it.
    """
    encoder, first = averaged.clone(), moments.first.clone()
    second = None if moments.second is None else moments.second.clone()
    rate = _rate(settings, learning_rate, moments.steps + 1)
    for part in parts_of(layout.num_parameter_entries):
        there = sent[layout.owner_in(part)]
        change = averaged[part].double() - before[part].double()
        mean = first[part].double()
        if second is None:
            mean = settings.momentum * mean + change
            step = mean
        else:
            mean = settings.beta_1 * mean + (1 - settings.beta_1) * change
            square, old = change.square(), second[part].double()
            if settings.name == "adam":
                spread = settings.beta_2 * old + (1 - settings.beta_2) * square
            else:
                spread = old - (1 - settings.beta_2) * square * torch.sign(old - square)
            step = mean / (spread.sqrt() + settings.tau)
            second[part] = torch.where(there, spread.float(), second[part])
        first[part] = torch.where(there, mean.float(), first[part])
        encoder[part] = torch.where(there, (before[part].double() + rate * step).float(), before[part])
    return encoder, replace(moments, steps=moments.steps + 1, first=first, second=second)


def _rate(settings: ServerOptimizerConfig, learning_rate: float, step: int) -> float:
    """Return the rate of a step, from 1: corrected for moments that start at zero, under adam alone."""
    if settings.name != "adam":
        return learning_rate
    first, second = (1 - beta ** (step + 1) for beta in (settings.beta_1, settings.beta_2))
    return learning_rate * float(second**0.5) / float(first)
