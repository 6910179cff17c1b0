"""Scores of clients: how far what the federation's model does on one client's examples is from what it does on others'.

Each takes the findings of all clients and gives one number for each, or None where there is nothing to compare it with:
a class that nobody else has, a network without a last linear layer. What each was measured to find, and what not,
stands in docs/diagnosis.md with its command.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from spatl.diagnosis.prototypes import class_distances, sum_over
from spatl.errors import SpatlError
from spatl.saliency.findings import Findings
from spatl.saliency.moments import merged, standardised

Scores = dict[int, float | None]
"""One number for each client; None where it cannot be said."""


def mean_z(findings: Mapping[int, Findings]) -> Scores:
    """Return the mean over the filters of a client's mean profile, in standard deviations of all examples' profiles.

    The moments are those of all clients together, z as of Levin et al. (arXiv 2108.01335).
    """
    together = merged(each.moments for each in findings.values())
    return {client: float(standardised(each.moments.means, together).mean()) for client, each in findings.items()}


def loss_within_class(findings: Mapping[int, Findings]) -> Scores:
    """Return by how much a client's examples have a higher loss than others' of the same class, in the mean."""
    return _within_class(findings, _loss_excess(findings))


def loss_of_worst_class(findings: Mapping[int, Findings]) -> Scores:
    """Return the largest excess of a client's mean loss of a class over others' of the same, times the root of n.

    With n examples of the class: a mean of few is off by chance alone.
    """
    excess, counts, found = _loss_excess(findings), sum_over(findings, lambda each: each.counts), Scores()
    for client, own in findings.items():
        shared = (own.counts > 0) & (counts > own.counts)
        found[client] = float((excess(own) * own.counts.sqrt())[shared].max()) if bool(shared.any()) else None
    return found


def saliency_within_class(findings: Mapping[int, Findings]) -> Scores:
    """Return the mean over the filters by which a client's profiles exceed others' of the same class.

    In standard deviations of all examples' profiles.
    """
    deviations = merged(each.moments for each in findings.values()).deviations
    units = torch.where(deviations > 0, deviations, math.inf)

    def scaled(own: Findings) -> Tensor:
        return own.counts * (own.class_profiles.double() / units).mean(1)

    counts, totals = sum_over(findings, lambda each: each.counts), sum_over(findings, scaled)

    def excess(own: Findings) -> Tensor:
        profiles = scaled(own)
        return profiles / own.counts.clamp(min=1) - (totals - profiles) / (counts - own.counts).clamp(min=1)

    return _within_class(findings, excess)


def prototype_distance(findings: Mapping[int, Findings]) -> Scores:
    """Return how far a client's class means are from others' of the same class, in what is usual between clients.

    The mean over its classes of the distance of its own mean feature from that of all others, times the root of the
    number of examples it is of, divided by the median of that over the clients that have the class.
    """
    distances = class_distances(findings)
    rooted = {client: own * findings[client].counts.double().sqrt() for client, own in distances.items()}
    usual = torch.stack(list(rooted.values())).nanquantile(0.5, dim=0)
    ratios = {client: (own / usual)[own.isfinite() & (usual > 0)] for client, own in rooted.items()}
    return {client: float(own.mean()) if len(own) else None for client, own in ratios.items()}


def label_divergence(findings: Mapping[int, Findings]) -> Scores:
    """Return the Jensen-Shannon divergence of a client's training labels from all others', in bits, in [0, 1].

    It says how skewed a client's labels are, which is no sickness.
    """
    total, found = sum_over(findings, lambda each: each.labels), Scores()
    for client, own in findings.items():
        p, q = own.labels.double(), total - own.labels
        if not float(p.sum()) or not float(q.sum()):
            found[client] = None
            continue
        p, q = p / p.sum(), q / q.sum()
        found[client] = max(0.0, _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2)
    return found


@dataclass(frozen=True)
class Score:
    """Score by its name.

    Attributes:
        name: In a table and in JSON.
        meaning: Of a number, in one line.
        worse: 1 where more is worse, -1 where less is.
        of: Function that gives it from findings; None for one that comes from elsewhere.
    """

    name: str
    meaning: str
    worse: int = 1
    of: Callable[[Mapping[int, Findings]], Scores] | None = None


SCORES: Final[Mapping[str, Score]] = {
    each.name: each
    for each in (
        Score("mean_z", "profile above the federation's, in standard deviations, mean over filters", of=mean_z),
        Score("loss", "loss above others' on the same classes", of=loss_within_class),
        Score("worst_class", "loss above others' on its worst class, times the root of n", of=loss_of_worst_class),
        Score("prototypes", "distance of its class means from others', in the usual one", of=prototype_distance),
        Score("saliency", "profile above others' on the same classes, mean over filters", of=saliency_within_class),
        Score("mislabelled", "share of its examples that look like another class than their label's"),
        Score("cosine", "cosine of its update with the others' sum, mean over rounds", worse=-1),
        Score("batch_norm", "distance of its BatchNorm statistics from the federation's"),
        Score("labels", "divergence of its label frequencies, in bits: skew, no sickness", of=label_divergence),
    )
}
"""All scores, in the order of a table."""


def check_alike(findings: Mapping[int, Findings]) -> None:
    """Raise unless the findings of all clients are about one network and the same classes.

    Raises:
        SpatlError: They are not.
    """
    shapes = {(tuple(each.class_profiles.shape), each.prototypes.shape[1]) for each in findings.values()}
    if len(shapes) > 1:
        raise SpatlError("the findings of clients are about different networks or classes, and cannot be compared")


def _loss_excess(findings: Mapping[int, Findings]) -> Callable[[Findings], Tensor]:
    """Return what a client's mean loss of each class is above others' of the same, float64 [K], as a function of it."""
    counts, losses = sum_over(findings, lambda each: each.counts), sum_over(findings, lambda each: each.losses)

    def excess(own: Findings) -> Tensor:
        return own.losses / own.counts.clamp(min=1) - (losses - own.losses) / (counts - own.counts).clamp(min=1)

    return excess


def _within_class(findings: Mapping[int, Findings], excess: Callable[[Findings], Tensor]) -> Scores:
    """Return the mean over a client's examples of what [K] says of their class, of classes that others have, too."""
    counts, found = sum_over(findings, lambda each: each.counts), Scores()
    for client, own in findings.items():
        weights = torch.where(counts > own.counts, own.counts, 0).double()
        shared = float(weights.sum())
        found[client] = float((weights * excess(own)).sum() / shared) if shared else None
    return found


def _entropy(frequencies: Tensor) -> float:
    held = frequencies[frequencies > 0]
    return -float((held * held.log2()).sum())
