"""Prototypes: the mean feature of each class on one client, beside that on all others together."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from spatl.saliency.findings import Findings


def class_distances(findings: Mapping[int, Findings]) -> dict[int, Tensor]:
    """Return the distance of each client's mean feature of each class from that of all others, float64 [K].

    NaN for a class that the client or everybody else has no mean of.
    """
    others = prototypes_of_others(findings)
    return {
        client: torch.where(
            has_prototype(own) & others[client][1], (own.prototypes.double() - others[client][0]).norm(dim=1), math.nan
        )
        for client, own in findings.items()
    }


def prototypes_of_others(findings: Mapping[int, Findings]) -> dict[int, tuple[Tensor, Tensor]]:
    """Return, for each client, the mean feature of each class over all others, float64 [K, D], and which there are.

    The latter is bool [K]; the mean of a class that nobody else has one of is 0.
    """
    counts = sum_over(findings, _known_counts)
    sums = sum_over(findings, _feature_sums)
    found = dict[int, tuple[Tensor, Tensor]]()
    for client, own in findings.items():
        number = counts - _known_counts(own)
        known = number > 0
        means = (sums - _feature_sums(own)) / number.clamp(min=1)[:, None]
        found[client] = means.where(known[:, None], 0.0), known
    return found


def has_prototype(findings: Findings) -> Tensor:
    """Return the classes that a client has a mean feature of, bool [K]: it keeps those of few examples to itself."""
    return (findings.counts > 0) & (findings.prototypes != 0).any(1)


def sum_over(findings: Mapping[int, Findings], term: Callable[[Findings], Tensor]) -> Tensor:
    """Return the sum of something over all clients, in the order of their numbers; float64."""
    return torch.stack([term(findings[client]).double() for client in sorted(findings)]).sum(0)


def _known_counts(findings: Findings) -> Tensor:
    return torch.where(has_prototype(findings), findings.counts, 0).double()


def _feature_sums(findings: Findings) -> Tensor:
    return _known_counts(findings)[:, None] * findings.prototypes.double()
