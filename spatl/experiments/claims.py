"""Claims about parameter-space saliency, each as measures on one network (Levin et al., arXiv 2108.01335).

Every claim is measured beside what it would have to beat: filters drawn at random, from all layers or from the same
ones, the least salient filters; neighbours by what the network computes anyway; the plain gradient of the loss.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from spatl.config.saliency import CLAIMS, SaliencyConfig
from spatl.experiments.measures import Measure
from spatl.experiments.networks import Subject, logits_of
from spatl.saliency.choosing import CONTROLS
from spatl.saliency.findings import features
from spatl.saliency.maps import input_maps
from spatl.saliency.neighbours import nearest
from spatl.saliency.repair import example_gradients, filter_weights, length_of, logits_with, repaired_by
from spatl.saliency.switching import logits_without

Z: Final = "z"
GRADIENT_X_WEIGHT: Final = "gradient x weight"
ABSOLUTE: Final = "|gradient|"
RANDOM: Final = "random"
SAME_LAYERS: Final = "random, same layers"
LEAST: Final = "least z"
PROBABILITIES: Final = "probabilities - label"


@dataclass(frozen=True)
class ClaimEntry:
    """Entry of the table of claims.

    Attributes:
        title: What is claimed, in a sentence.
        measure: Measures it on one network.
    """

    title: str
    measure: Callable[[Subject, SaliencyConfig], Iterator[Measure]]


def _scores(subject: Subject) -> dict[str, Tensor]:
    """Return what filters are ranked by, `[N, F]`, by name."""
    return {
        Z: subject.z,
        GRADIENT_X_WEIGHT: subject.profiles.signed.double(),
        ABSOLUTE: subject.profiles.absolute.double(),
    }


def _choices(subject: Subject, k: int, draw: int) -> dict[str, Tensor]:
    """Return bool [N, F], the k filters of each error by every way there is."""
    draws, z, k = subject.draws(f"controls {k} {draw}"), subject.z, min(k, subject.filters.num_filters)
    ranked = {
        name: CONTROLS["most salient"](each, k, subject.filters, draws) for name, each in _scores(subject).items()
    }
    return ranked | {
        RANDOM: CONTROLS["random"](z, k, subject.filters, draws),
        SAME_LAYERS: CONTROLS["random, same layers"](z, k, subject.filters, draws),
        LEAST: CONTROLS["least salient"](z, k, subject.filters, draws),
    }


def switching_off(subject: Subject, config: SaliencyConfig) -> Iterator[Measure]:
    """Measure how many errors are righted, and how the right class's probability rises, without k filters."""
    labels = subject.errors.targets.cpu()
    before = _of_label(_logits(subject), labels)
    for k in config.top_k:
        drawn = [_choices(subject, k, draw) for draw in range(config.draws)]
        for way in drawn[0]:
            turns = drawn if way in (RANDOM, SAME_LAYERS) else drawn[:1]
            logits = [
                logits_without(subject.network, subject.errors.images, subject.filters, each[way]) for each in turns
            ]
            righted = torch.stack([(each.argmax(1) == labels).double() for each in logits]).mean(0)
            risen = torch.stack([_of_label(each, labels) - before for each in logits]).mean(0)
            control = None if way == RANDOM else RANDOM
            yield Measure("switching-off", "righted", f"k = {k}", way, righted, control)
            yield Measure("switching-off", "rise of the right class", f"k = {k}", way, risen, control)


def repair(subject: Subject, config: SaliencyConfig) -> Iterator[Measure]:
    """Measure what one step of one length on an error does, by k filters: to itself, its neighbours, and the others."""
    number = min(config.most_repaired, len(subject.errors))
    z, images, labels = subject.z, subject.errors.images, subject.errors.targets
    places, _ = nearest(z, z, min(config.neighbours, len(z) - 1), same=True)
    right = subject.right.at(slice(100))
    weights = filter_weights(subject.network, subject.filters)
    total = length_of(weights)
    choices = _choices(subject, config.repaired, 0)
    everything = torch.ones(len(z), subject.filters.num_filters, dtype=torch.bool)
    ways = {**choices, "all filters": everything}
    found: dict[tuple[str, str, float], list[float]] = {}
    for example in range(number):
        gradients = example_gradients(subject.network, images[example], labels[example], weights)
        own = torch.cat([torch.tensor([example]), places[example]])
        batch = torch.cat([images[own], right.images])
        expected = torch.cat([labels[own], right.targets])
        for way, chosen in ways.items():
            for length in config.repair_lengths:
                changed = repaired_by(weights, gradients, subject.filters, chosen[example], length=length * total)
                hits = (logits_with(subject.network, batch, changed).argmax(1) == expected).double()
                parts = {
                    "the example righted": hits[:1], "its neighbours righted": hits[1 : len(own)],
                    "what was right stays right": hits[len(own) :],
                }  # fmt: skip
                for quantity, part in parts.items():
                    found.setdefault((quantity, way, length), []).append(float(part.mean()))
    for (quantity, way, length), values in found.items():
        control = None if way == SAME_LAYERS else SAME_LAYERS
        yield Measure("repair", quantity, f"length {length:g}", way, torch.tensor(values, dtype=torch.float64), control)


def neighbours(subject: Subject, config: SaliencyConfig) -> Iterator[Measure]:
    """Measure how many of an error's nearest errors are the same error: of that class, taken for that class."""
    labels, said = subject.errors.targets.cpu(), subject.profiles.predictions
    k = min(config.neighbours, len(labels) - 1)
    logits = _logits(subject)
    spaces = {
        Z: subject.z, ABSOLUTE: subject.profiles.absolute.double(),
        "features": features(subject.network, subject.errors.images), "logits": logits - logits.mean(0),
        "pixels": subject.errors.images.flatten(1).cpu(), PROBABILITIES: _residuals(logits, labels),
        RANDOM: torch.randn(len(labels), 64, generator=subject.draws("neighbours")),
    }  # fmt: skip
    for way, space in spaces.items():
        if not space.shape[1]:
            continue
        places, _ = nearest(space, space, k, same=True)
        alike = {
            "the same error": (labels[places] == labels[:, None]) & (said[places] == said[:, None]),
            "the same class": labels[places] == labels[:, None],
        }
        for quantity, each in alike.items():
            control = None if way == RANDOM else RANDOM
            yield Measure("neighbours", quantity, f"{k} nearest", way, each.double().mean(1), control)


def maps(subject: Subject, config: SaliencyConfig) -> Iterator[Measure]:
    """Measure what masking the pixels that a map marks does to the error: they should be what misleads the network."""
    errors = subject.errors.at(slice(config.most_repaired))
    found = input_maps(subject.network, errors, subject.filters, subject.moments, k=config.boosted)
    drawn = torch.rand(found.salient.shape, generator=subject.draws("pixels"))
    ways = {"salient filters": found.salient, "plain gradient": found.gradient, RANDOM: drawn}
    labels = errors.targets.cpu()
    before = _of_label(logits_of(subject.network, errors.images), labels)
    mean = subject.right.images.mean((0, 2, 3), keepdim=True)
    for share in config.masked:
        for way, marked in ways.items():
            flat = marked.flatten(1)
            number = max(1, round(share * flat.shape[1]))
            chosen = CONTROLS["most salient"](flat, number, subject.filters, subject.draws(""))
            mask = chosen.reshape(marked.shape)[:, None].to(errors.images.device)
            logits = logits_of(subject.network, torch.where(mask, mean, errors.images))
            control = None if way == "plain gradient" else "plain gradient"
            setting = f"{100 * share:g} % masked"
            yield Measure("input-maps", "righted", setting, way, (logits.argmax(1) == labels).double(), control)
            yield Measure(
                "input-maps", "rise of the right class", setting, way, _of_label(logits, labels) - before, control
            )


def depth(subject: Subject, config: SaliencyConfig) -> Iterator[Measure]:
    """Measure how unevenly the most salient filters of all errors lie over the layers, one value of the network.

    It is half the sum over the layers of the difference between their shares of the salient and of all filters: 0 where
    each layer has its share, nearly 1 where one small layer has all.
    """
    filters = subject.filters
    sizes = torch.tensor([layer.num_filters for layer in filters.layers], dtype=torch.float64)
    k = min(config.boosted, filters.num_filters)
    for way, chosen in _choices(subject, k, 0).items():
        shares = torch.stack([chosen[:, layer.places].sum() for layer in filters.layers]).double() / chosen.sum()
        uneven = ((shares - sizes / sizes.sum()).abs().sum() / 2)[None]
        yield Measure("depth", "unevenness over layers", f"k = {k}", way, uneven, None if way == RANDOM else RANDOM)


def _logits(subject: Subject) -> Tensor:
    return logits_of(subject.network, subject.errors.images)


def _of_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Return float64 [N]: the probability of each example's label."""
    return F.softmax(logits.double(), dim=1).gather(1, labels[:, None])[:, 0]


def _residuals(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `[N, K]`, the gradient of the loss with respect to the logits: it knows the label, as a profile does."""
    return F.softmax(logits.double(), dim=1) - F.one_hot(labels, logits.shape[1])


_ENTRIES: Final = (
    ClaimEntry("switching the most salient filters off rights errors", switching_off),
    ClaimEntry("training the most salient filters on one error rights it and its neighbours", repair),
    ClaimEntry("errors with near profiles are of one kind", neighbours),
    ClaimEntry("the input map of the salient filters marks what misleads the network", maps),
    ClaimEntry("standardised profiles do not favour layers", depth),
)
CLAIM_TABLE: Final[Mapping[str, ClaimEntry]] = dict(zip(CLAIMS, _ENTRIES, strict=True))
"""Claims by name."""
