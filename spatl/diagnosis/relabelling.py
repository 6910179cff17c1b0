"""Search for a relabelled class: one whose examples, on one client, have the features of another class elsewhere."""

from collections.abc import Mapping
from typing import Final

import torch

from spatl.diagnosis.scores import has_prototype, prototypes_of_others
from spatl.saliency.findings import Findings

_FEWEST: Final = 2
"""Examples of a class that say what it looks like, at least."""
_SHARE: Final = 0.3
"""Share of the way from the labels' class to the other that the features must have gone."""


def relabelled_class(client: int, findings: Mapping[int, Findings]) -> tuple[int, int] | None:
    """Return the class b whose labels stand on examples of class a, on a client, and a; None if there is no such pair.

    With p_k the others' mean feature of class k and q_b the client's own, a share

        t = (q_b - p_b) . (p_a - p_b) / |p_a - p_b|^2

    of the way from b to a is what examples of a with labels b make of q_b. The client itself has no example labelled a
    then. Of all pairs the one with the largest loss above the others' is returned.

    Args:
        client: Its number.
        findings: Of all clients.
    """
    own = findings[client]
    means, known = prototypes_of_others(findings, client)
    best, best_pair = 0.0, None
    for b in torch.nonzero((own.counts >= _FEWEST) & has_prototype(own) & known).flatten().tolist():
        for a in torch.nonzero((own.counts == 0) & known).flatten().tolist():
            way = means[a] - means[b]
            length = float(way.square().sum())
            share = float((own.prototypes[b].double() - means[b]) @ way) / length if length > 0 else 0.0
            if share > _SHARE and share * int(own.counts[b]) > best:
                best, best_pair = share * int(own.counts[b]), (b, a)
    return best_pair
