"""Findings of clients, drawn: those that some network could have on some examples."""

import torch
from torch import Tensor

from spatl.saliency.filters import CONVOLUTION, FilterLayer, Filters
from spatl.saliency.findings import Findings
from spatl.saliency.moments import Moments


def drawn_findings(
    seed: int, *, num_filters: int = 5, num_classes: int = 3, num_features: int = 4, num_examples: int = 12
) -> Findings:
    """Return findings on examples with drawn labels, profiles, losses and features."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_examples,), generator=rng)
    return findings_on(
        labels,
        torch.rand(num_examples, num_filters, generator=rng) * torch.logspace(-6, 3, num_filters),
        torch.rand(num_examples, generator=rng) * 9,
        torch.rand(num_examples, num_features, generator=rng),
        torch.rand(num_examples, generator=rng) < 0.6,
        num_classes,
    )


def findings_on(
    labels: Tensor, profiles: Tensor, losses: Tensor, features: Tensor, correct: Tensor, num_classes: int
) -> Findings:
    """Return findings on examples: int64 [N], [N, F], [N], [N, D], bool [N]; twice as many are trained on."""
    members = torch.nn.functional.one_hot(labels, num_classes).double().T
    sizes = members.sum(1, keepdim=True).clamp(min=1)
    return Findings(
        moments=Moments.of(profiles),
        counts=members.sum(1).long(),
        losses=members @ losses.double(),
        correct=(members @ correct.double()).long(),
        class_profiles=(members @ profiles.double() / sizes).float(),
        prototypes=(members @ features.double() / sizes).float(),
        labels=2 * members.sum(1).long(),
    )


def drawn_filters(*numbers: int) -> Filters:
    """Return filters of convolutions, so many each."""
    layers = [
        FilterLayer(f"conv{place}", CONVOLUTION, sum(numbers[:place]), number) for place, number in enumerate(numbers)
    ]
    return Filters(tuple(layers))


def same_findings(one: Findings, other: Findings) -> bool:
    """Return whether findings are the same, to the last bit."""
    return one.moments.count == other.moments.count and all(
        torch.equal(left, right)
        for left, right in [
            (one.moments.means, other.moments.means),
            (one.moments.squares, other.moments.squares),
            *((getattr(one, name), getattr(other, name)) for name in NAMES),
        ]
    )


NAMES = ("counts", "losses", "correct", "class_profiles", "prototypes", "labels")
