"""Measures of an experiment: values by example, and their means with standard errors over examples and networks."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Measure:
    """Values of one way of doing something, on one network.

    Attributes:
        claim: The experiment.
        quantity: What is measured: `"righted"`.
        setting: Under which setting: `"k = 10"`; empty where there is one only.
        way: How: `"z"`, or the name of a control.
        values: float64 [N], by example.
        control: Which way it is compared with; None for the control itself.
    """

    claim: str
    quantity: str
    setting: str
    way: str
    values: Tensor
    control: str | None = None


@dataclass(frozen=True)
class Row:
    """Row of a table: one way under one setting, over all networks.

    Attributes:
        claim: As of `Measure`; so are `quantity`, `setting`, `way` and `control`.
        quantity: Likewise.
        setting: Likewise.
        way: Likewise.
        control: Likewise.
        mean: The mean of the networks' means.
        networks: Each network's mean.
        gain: The mean difference from the control; None for the control itself.
        gain_error: Standard error of that over the examples, within the networks; the differences are paired.
        gain_spread: Standard error of that over the networks; None of fewer than two.
        num_examples: Of all networks together.
    """

    claim: str
    quantity: str
    setting: str
    way: str
    control: str | None
    mean: float
    networks: tuple[float, ...]
    gain: float | None
    gain_error: float | None
    gain_spread: float | None
    num_examples: int


def rows_of(networks: Sequence[Iterable[Measure]]) -> list[Row]:
    """Return a row for each way and setting, in the order in which they were measured.

    Args:
        networks: The measures of each network, of the same ways and settings.
    """
    found = [{(each.claim, each.quantity, each.setting, each.way): each for each in measures} for measures in networks]
    return [_row([each[key] for each in found], [_control(each, key) for each in found]) for key in found[0]]


_Key = tuple[str, str, str, str]


def _control(measures: dict[_Key, Measure], key: _Key) -> Measure | None:
    control = measures[key].control
    return None if control is None else measures[(*key[:3], control)]


def _row(own: Sequence[Measure], controls: Sequence[Measure | None]) -> Row:
    first, means = own[0], [float(each.values.mean()) for each in own]
    gain = error = spread = None
    pairs = [(each.values, other.values) for each, other in zip(own, controls, strict=True) if other is not None]
    if pairs:
        differences = [values - others for values, others in pairs]
        gains = torch.stack([each.mean() for each in differences])
        gain = float(gains.mean())
        error = math.sqrt(sum(_squared_error(each) for each in differences)) / len(differences)
        spread = math.sqrt(_squared_error(gains)) if len(gains) > 1 else None
    return Row(
        first.claim, first.quantity, first.setting, first.way, first.control, sum(means) / len(means), tuple(means),
        gain, error, spread, sum(len(each.values) for each in own),
    )  # fmt: skip


def _squared_error(values: Tensor) -> float:
    """Squared standard error of a mean; 0 of a single value."""
    return float(values.var(correction=1)) / len(values) if len(values) > 1 else 0.0
