"""Search for wrong labels: of which classes the examples look that a client's labels call one class.

With p_a the others' mean feature of class a and q_b the client's own of the examples with label b, q_b is explained as
a mixture of the p_a,

    minimise over w  |q_b - sum_a w_a p_a|^2 / 2 + e_b sum_a w_a |p_a - p_b|,     w_a >= 0,  sum_a w_a = 1

so that w_a is the share of these examples that look like class a. The second term keeps shares at b that sampling alone
would take away: e_b is twice the error of a mean of so many examples, in one direction, as it is usual between clients.
Labels alone are blamed: images that are off in any other way move q_b, too, and part of that looks like other classes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from spatl.diagnosis.prototypes import class_distances, has_prototype, prototypes_of_others
from spatl.saliency.findings import Findings

_STEPS: Final = 200
_ERRORS: Final = 2.0  # of a mean, that are taken for sampling


@dataclass(frozen=True, eq=False)
class Mixture:
    """Classes that a client's labels seem to stand on.

    Attributes:
        shares: float64 [K, K], of the examples with label b (rows) those that look like class a; rows add up to 1. A
            class that nothing is known of looks like itself.
        counts: int64 [K], examples of each label.
    """

    shares: Tensor
    counts: Tensor

    @property
    def mislabelled(self) -> float:
        """Share of all examples that look like another class than their label."""
        return float(self._others.sum() / self.counts.sum())

    @property
    def largest(self) -> tuple[int, int, float]:
        """Label b and class a with the most examples of b that look like a, and their share of all mislabelled ones."""
        others = self._others
        b, a = divmod(int(others.argmax()), len(others))
        total = float(others.sum())
        return b, a, float(others[b, a]) / total if total > 0 else 0.0

    def counts_of(self, label: int, looks_like: int) -> float:
        """Return the number of examples with a label that look like a class."""
        return float(self.counts[label] * self.shares[label, looks_like])

    @property
    def _others(self) -> Tensor:
        """float64 [K, K]: examples of label b that look like a, without those that look like b."""
        return (self.counts[:, None] * self.shares).fill_diagonal_(0.0)


def mixtures(findings: Mapping[int, Findings]) -> dict[int, Mixture]:
    """Return of which classes the examples of each client look.

    Args:
        findings: Of all clients, about one model.
    """
    errors, others = _usual_errors(findings), prototypes_of_others(findings)
    found = dict[int, Mixture]()
    for client, own in findings.items():
        means, known = others[client]
        labels, classes = (has_prototype(own) & known).nonzero().flatten(), known.nonzero().flatten()
        shares = torch.eye(len(own.counts), dtype=torch.float64)
        if len(labels):
            own_places = torch.searchsorted(classes, labels)
            error = _ERRORS * errors[labels] / own.counts[labels].double().sqrt()
            rows = _mixed(own.prototypes[labels].double(), means[classes], own_places, error)
            shares[labels] = torch.zeros(len(labels), len(shares), dtype=torch.float64).index_copy_(1, classes, rows)
        found[client] = Mixture(shares, own.counts)
    return found


def _usual_errors(findings: Mapping[int, Findings]) -> Tensor:
    """Return the deviation of one example's feature from its class mean, in one direction, float64 [K].

    From the median over clients of what means of n examples are off by, times the root of n; 0 where nothing is known.
    """
    rows = [own * findings[client].counts.double().sqrt() for client, own in class_distances(findings).items()]
    width = max(1, next(iter(findings.values())).prototypes.shape[1])
    usual: Tensor = torch.stack(rows).nanquantile(0.5, dim=0).nan_to_num(0.0)
    return usual / math.sqrt(width)


def _mixed(means: Tensor, prototypes: Tensor, own: Tensor, errors: Tensor) -> Tensor:
    """Return the shares, float64 [B, A], by accelerated projected gradient (FISTA) from all shares at the own class.

    Args:
        means: q_b, `[B, D]`.
        prototypes: p_a, `[A, D]`.
        own: int64 [B], the place of b among the a.
        errors: e_b, `[B]`.
    """
    products, targets = prototypes @ prototypes.T, means @ prototypes.T
    penalty = errors[:, None] * torch.cdist(prototypes[own], prototypes)
    step = 1 / max(float(torch.linalg.matrix_norm(products, 2)), 1e-12)
    shares = torch.zeros(targets.shape, dtype=torch.float64)
    shares[torch.arange(len(own)), own] = 1.0
    ahead, speed = shares, 1.0
    for _ in range(_STEPS):
        new = onto_simplex(ahead - step * (ahead @ products - targets + penalty))
        faster = (1 + (1 + 4 * speed**2) ** 0.5) / 2
        ahead, shares, speed = new + (speed - 1) / faster * (new - shares), new, faster
    return shares


def onto_simplex(rows: Tensor) -> Tensor:
    """Return the nearest rows that are not negative and add up to 1 (Held, Wolfe, Crowder 1974).

    Args:
        rows: float64 [B, A].
    """
    ordered = rows.sort(dim=1, descending=True).values
    excess = (ordered.cumsum(1) - 1) / torch.arange(1, rows.shape[1] + 1, dtype=torch.float64)
    number = (ordered > excess).sum(1, keepdim=True)
    return (rows - excess.gather(1, number - 1)).clamp(min=0.0)
