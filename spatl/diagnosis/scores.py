"""Scores of clients: how far what the federation's model does on one client's examples is from what it does on others'.

Each takes the findings of all clients and gives one number for each, or None where there is nothing to compare it with:
a class that nobody else has, a network without a last linear layer. What each was measured to find, and what not,
stands in docs/diagnosis.md with its command.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from spatl.errors import SpatlError
from spatl.saliency.findings import Findings
from spatl.saliency.moments import merged, standardised

Scores = dict[int, float | None]
"""One number for each client; None where it cannot be said."""


def mean_z(findings: Mapping[int, Findings]) -> Scores:
    """Return the mean over the filters of a client's mean profile, in standard deviations of all examples' profiles.

    The moments are those of all clients together, z as of Levin et al. (arXiv 2108.01335, section 3.2).
    """
    together = merged(each.moments for each in findings.values())
    return {client: float(standardised(each.moments.means, together).mean()) for client, each in findings.items()}


def loss_within_class(findings: Mapping[int, Findings]) -> Scores:
    """Return by how much a client's examples have a higher loss than others' of the same class, in the mean."""

    def excess(own: Findings, others: Sequence[Findings]) -> Tensor:
        theirs = _sum([each.losses for each in others]) / _counts(others).clamp(min=1)
        return own.losses / own.counts.clamp(min=1) - theirs

    return _within_class(findings, excess)


def saliency_within_class(findings: Mapping[int, Findings]) -> Scores:
    """Return the mean over the filters by which a client's profiles exceed others' of the same class.

    In standard deviations of all examples' profiles.
    """
    deviations = merged(each.moments for each in findings.values()).deviations
    varies = deviations > 0

    def excess(own: Findings, others: Sequence[Findings]) -> Tensor:
        theirs = _sum([each.counts[:, None] * each.class_profiles.double() for each in others])
        differences = own.class_profiles.double() - theirs / _counts(others).clamp(min=1)[:, None]
        return torch.where(varies, differences / deviations.where(varies, torch.ones_like(deviations)), 0.0).mean(1)

    return _within_class(findings, excess)


def prototype_distance(findings: Mapping[int, Findings]) -> Scores:
    """Return how far a client's class means are from others' of the same class, in what is usual between clients.

    The mean over a client's examples of the distance between its own mean feature of their class and that of all
    others, divided by the median of that distance over the clients that have the class.
    """
    distances = class_distances(findings)
    usual = _medians(list(distances.values()))

    def relative(client: int) -> float | None:
        own, counts = distances[client], findings[client].counts.double()
        known = own.isfinite() & (usual > 0)
        if not bool(known.any()):
            return None
        return float((counts * (own / usual))[known].sum() / counts[known].sum())

    return {client: relative(client) for client in findings}


def class_distances(findings: Mapping[int, Findings]) -> dict[int, Tensor]:
    """Return the distance of each client's mean feature of each class from that of all others, float64 [K].

    NaN for a class that the client or everybody else has no mean of.
    """
    found = dict[int, Tensor]()
    for client, own in findings.items():
        means, known = prototypes_of_others(findings, client)
        distances = (own.prototypes.double() - means).norm(dim=1)
        found[client] = torch.where(has_prototype(own) & known, distances, math.nan)
    return found


def prototypes_of_others(findings: Mapping[int, Findings], client: int) -> tuple[Tensor, Tensor]:
    """Return the mean feature of each class over all clients but one, float64 [K, D], and which have any, bool [K]."""
    others = _others(findings, client)
    counts = torch.stack([torch.where(has_prototype(each), each.counts, 0) for each in others])
    sums = _sum([own[:, None] * each.prototypes.double() for own, each in zip(counts, others, strict=True)])
    together = counts.sum(0)
    return sums / together.clamp(min=1)[:, None], together > 0


def has_prototype(findings: Findings) -> Tensor:
    """Return the classes that a client has a mean feature of, bool [K]: it keeps those of few examples to itself."""
    return (findings.counts > 0) & (findings.prototypes != 0).any(1)


def label_divergence(findings: Mapping[int, Findings]) -> Scores:
    """Return the Jensen-Shannon divergence of a client's training labels from all others', in bits, in [0, 1].

    It says how skewed a client's labels are, which is no sickness.
    """
    found: Scores = {}
    for client, own in findings.items():
        others = _sum([each.labels for each in _others(findings, client)])
        p, q = own.labels.double(), others.double()
        if not float(p.sum()) or not float(q.sum()):
            found[client] = None
            continue
        p, q = p / p.sum(), q / q.sum()
        middle = (p + q) / 2
        found[client] = max(0.0, _entropy(middle) - (_entropy(p) + _entropy(q)) / 2)
    return found


@dataclass(frozen=True)
class Score:
    """Score by its name.

    Attributes:
        name: In a table and in JSON.
        meaning: Of a number, in one line.
        worse: 1 where more is worse, -1 where less is.
        of: What gives it from findings; None for one that comes from elsewhere.
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
        Score("prototypes", "distance of class means from others', in the usual one", of=prototype_distance),
        Score(
            "saliency", "profile above others' on the same classes, in standard deviations", of=saliency_within_class
        ),
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


def _within_class(findings: Mapping[int, Findings], excess: Callable[[Findings, Sequence[Findings]], Tensor]) -> Scores:
    """Return the mean over a client's examples of what [K] says of their class, of classes that others have, too."""
    found: Scores = {}
    for client, own in findings.items():
        others = _others(findings, client)
        shared = (own.counts > 0) & (_counts(others) > 0)
        weights = torch.where(shared, own.counts, 0).double()
        found[client] = float((weights * excess(own, others)).sum() / weights.sum()) if bool(shared.any()) else None
    return found


def _others(findings: Mapping[int, Findings], client: int) -> list[Findings]:
    return [each for other, each in findings.items() if other != client]


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum, correctly rounded, so that the order of clients does not matter; float64."""
    rows = torch.stack([each.double() for each in tensors])
    sums = [math.fsum(column) for column in rows.flatten(1).T.tolist()]
    return torch.tensor(sums, dtype=torch.float64).reshape(rows.shape[1:])


def _counts(findings: Sequence[Findings]) -> Tensor:
    return torch.stack([each.counts for each in findings]).sum(0)


def _medians(rows: Sequence[Tensor]) -> Tensor:
    """Return the median of what is finite in each column of rows [K], NaN where nothing is."""
    return torch.stack(list(rows)).nanquantile(0.5, dim=0)


def _entropy(frequencies: Tensor) -> float:
    held = frequencies[frequencies > 0]
    return -float((held * held.log2()).sum())
