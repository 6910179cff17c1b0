"""Treatments of a wrong prediction: filters switched off, or repaired, the blamed ones beside those of controls.

Blamed are the filters with the highest z of the mean absolute gradient (most salient: Levin et al., arXiv 2108.01335),
and those with the largest sum of gradient times weight (most harmful: what the loss falls by without them,
to first order). Whether that tells more than chance, controls say: as many filters drawn from all, drawn from the
layers that the blamed ones lie in, and the least salient.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from spatl.data import Examples
from spatl.saliency.choosing import CONTROLS
from spatl.saliency.filters import Filters
from spatl.saliency.repair import example_gradients, filter_weights, length_of, logits_with, repaired_by
from spatl.saliency.switching import logits_without

DRAWS: Final = 3
"""Draws of each random control, whose mean is told."""
STEP: Final = 0.02
"""Length of a repair's one step, as a share of the L2 norm of all filters together; the same for all ways."""
NOTHING: Final = "nothing"
SALIENT: Final = "salient"
HARMFUL: Final = "harmful"
WAYS: Final[Mapping[str, tuple[str, str]]] = {
    "most salient": (SALIENT, "most salient"),
    "most harmful": (HARMFUL, "most salient"),
    "random": (SALIENT, "random"),
    "random, layers of the most salient": (SALIENT, "random, same layers"),
    "random, layers of the most harmful": (HARMFUL, "random, same layers"),
    "least salient": (SALIENT, "least salient"),
}
"""Ways to choose filters: by which of the two scores, and which control of `spatl.saliency.choosing` on it."""


@dataclass(frozen=True)
class Switching:
    """Outcome of filters switched off.

    Attributes:
        way: One of `WAYS`, or `NOTHING`.
        righted: Share of the wrong predictions that become right.
        confidence: Mean probability of the true class on them.
        broken: Share of right predictions that become wrong; None where each example has filters of its own off.
    """

    way: str
    righted: float
    confidence: float
    broken: float | None


@dataclass(frozen=True)
class Repair:
    """Outcome of filters trained on one wrong example, mean over the examples that this is tried with.

    Attributes:
        way: As of `Switching`.
        righted: Share of the examples themselves that become right.
        confidence: Mean probability of their true classes.
        neighbours: Share of the neighbours by profile, wrong predictions too, that become right; None without any.
        others: Share of other wrong predictions that become right; likewise.
        broken: Share of right predictions that become wrong; likewise.
    """

    way: str
    righted: float
    confidence: float
    neighbours: float | None
    others: float | None
    broken: float | None


@dataclass(frozen=True, eq=False)
class Case:
    """Wrong prediction that is repaired.

    Attributes:
        example: The one example.
        scores: By `SALIENT` and `HARMFUL`, float [1, F].
        neighbours: Wrong predictions nearest by profile.
        others: Other wrong predictions.
    """

    example: Examples
    scores: Mapping[str, Tensor]
    neighbours: Examples
    others: Examples


def switched_off(
    network: nn.Module, wrong: Examples, right: Examples | None, scores: Mapping[str, Tensor], filters: Filters, *,
    k: int, generator: torch.Generator,
) -> tuple[Switching, ...]:  # fmt: skip
    """Return what switching k filters off does, by each way to choose them.

    Args:
        network: Taken in eval mode; it stays as it is.
        wrong: Examples that it gets wrong, at least one.
        right: Examples that it gets right; None where each example has filters of its own off.
        scores: By `SALIENT` and `HARMFUL`, float `[N, F]`; or `[1, F]`, the same filters for all.
        filters: Of the network.
        k: How many.
        generator: Draws the random controls.
    """
    nothing = torch.zeros(1, filters.num_filters, dtype=torch.bool)
    outcomes = [_outcome(NOTHING, network, wrong, right, filters, nothing)]
    for way in WAYS:
        chosen = _choices(way, scores, k, filters, generator)
        outcomes.append(_mean([_outcome(way, network, wrong, right, filters, off) for off in chosen]))
    return tuple(outcomes)


def repairs(
    network: nn.Module, cases: list[Case], right: Examples, filters: Filters, *, k: int, generator: torch.Generator
) -> tuple[Repair, ...]:
    """Return what training k filters on one example does, by each way to choose them, mean over some examples.

    It is one step of gradient descent of the same length (`STEP`) for all ways: with one learning rate the most salient
    filters, which have the largest gradients, would be changed most, and the size of a change taken for its aim.

    Args:
        network: Taken in eval mode; it stays as it is.
        cases: The examples, at least one.
        right: Examples that the network gets right.
        filters: Of the network.
        k: How many filters.
        generator: Draws the random controls.
    """
    weights = filter_weights(network, filters)
    norm = length_of(weights)
    rows: dict[str, list[Repair]] = {}
    for case in cases:
        gradients = example_gradients(network, case.example.images[0], case.example.targets[0], weights)
        rows.setdefault(NOTHING, []).append(_repaired(NOTHING, network, case, right, weights))
        for way in WAYS:
            chosen = next(_choices(way, case.scores, k, filters, generator))[0]
            changed = repaired_by(weights, gradients, filters, chosen, length=STEP * norm)
            rows.setdefault(way, []).append(_repaired(way, network, case, right, changed))
    return tuple(map(_mean, rows.values()))


def _choices(
    way: str, scores: Mapping[str, Tensor], k: int, filters: Filters, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield the filters of a way, bool [N or 1, F]: once, or `DRAWS` times where they are drawn."""
    by, control = WAYS[way]
    for _ in range(DRAWS if control.startswith("random") else 1):
        yield CONTROLS[control](scores[by], k, filters, generator)


def _outcome(
    way: str, network: nn.Module, wrong: Examples, right: Examples | None, filters: Filters, off: Tensor
) -> Switching:
    logits = logits_without(network, wrong.images, filters, off.expand(len(wrong), -1))
    broken = None
    if right is not None and len(right):
        others = logits_without(network, right.images, filters, off.expand(len(right), -1))
        broken = 1.0 - _share_right(others, right)
    return Switching(way, _share_right(logits, wrong), _confidence(logits, wrong), broken)


def _repaired(way: str, network: nn.Module, case: Case, right: Examples, weights: Mapping[str, Tensor]) -> Repair:
    parts = (case.example, case.neighbours, case.others, right)
    logits = logits_with(network, torch.cat([each.images for each in parts]), weights).cpu()
    own, neighbours, others, before = torch.split(logits, [len(each) for each in parts])
    return Repair(
        way,
        righted=_share_right(own, case.example),
        confidence=_confidence(own, case.example),
        neighbours=_share_right(neighbours, case.neighbours) if len(case.neighbours) else None,
        others=_share_right(others, case.others) if len(case.others) else None,
        broken=1.0 - _share_right(before, right) if len(right) else None,
    )


_Outcome = TypeVar("_Outcome", Switching, Repair)


def _mean(found: Sequence[_Outcome]) -> _Outcome:
    """Return the mean of each number of some outcomes of one way, over those that have it."""
    means = dict[str, Any]()
    for field in fields(found[0]):
        if field.name != "way":
            known = [value for each in found if (value := getattr(each, field.name)) is not None]
            means[field.name] = sum(known) / len(known) if known else None
    return replace(found[0], **means)


def _share_right(logits: Tensor, examples: Examples) -> float:
    return float((logits.argmax(1) == examples.targets.cpu()).double().mean())


def _confidence(logits: Tensor, examples: Examples) -> float:
    return float(logits.softmax(1).gather(1, examples.targets.cpu()[:, None]).double().mean())
