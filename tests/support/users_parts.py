"""Selectors, data sets, partitioners and methods as users write them, and the ways in which they can be wrong."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spatl.channels.selection import Selection, select_all
from spatl.selection.protocol import Choice, SelectionRequest

A_NUMBER = 3


def by_norm(request: SelectionRequest) -> Tensor:
    """The energy of each channel's weights."""
    layout = request.costs.layout
    return torch.zeros(layout.num_channels).index_add_(0, layout.owner, request.weights.square())


class Counting:
    """A selector with a state: it knows how often its client was asked."""

    def __call__(self, request: SelectionRequest) -> Choice:
        asked = request.state.get("asked", torch.zeros(1)) + 1
        groups = request.costs.layout.groups
        mask = torch.zeros(request.costs.layout.num_channels, dtype=torch.bool)
        mask[[group.first for group in groups]] = True
        return Choice(Selection(mask), state={"asked": asked})


class Demanding:
    def __init__(self, size: int) -> None: ...


class NotCallable: ...


def everything(request: SelectionRequest) -> Choice:
    return Choice(select_all(request.costs.layout))


def nothing(request: SelectionRequest) -> Choice:
    return Choice(Selection(torch.zeros(request.costs.layout.num_channels, dtype=torch.bool)))


def closed(request: SelectionRequest) -> Choice:
    return Choice(Selection(select_all(request.costs.layout).mask, closed=True))


def too_short(request: SelectionRequest) -> Tensor:
    return torch.ones(3)


def not_a_number(request: SelectionRequest) -> Tensor:
    return torch.full((request.costs.layout.num_channels,), torch.nan)


def a_list(request: SelectionRequest) -> list[int]:
    return [1, 2]


def numbers_as_mask(request: SelectionRequest) -> Choice:
    return Choice(Selection(torch.ones(request.costs.layout.num_channels)))


def odd_state(request: SelectionRequest) -> Choice:
    return Choice(Counting()(request).selection, state={"asked": 3})  # type: ignore[dict-item]  # what is refused


def divides(request: SelectionRequest) -> Tensor:
    return torch.ones(1) * (1 // 0)


def changes_the_model(request: SelectionRequest) -> Tensor:
    with torch.no_grad():
        next(request.model.parameters()).zero_()
    return by_norm(request)


def any_of() -> list[Any]:
    """What the test's data sets draw, from each of the global generators."""
    return [torch.rand(1).item(), float(np.random.rand()), random.random()]
