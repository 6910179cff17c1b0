"""Mistakes of a model: which classes it takes for which, which filters are to blame, and whether that blame holds.

Errors are grouped by true and predicted class, the largest groups first. For each group the filters are named whose
mean z over its errors is highest (`spatl.saliency`), and those whose gradient times weight is; then both are tried, by
switching them off and by training them, beside controls (`spatl.diagnosis.treatments`).
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from spatl.data import Examples
from spatl.diagnosis.subject import Subject
from spatl.diagnosis.treatments import HARMFUL, SALIENT, Case, Repair, Switching, repairs, switched_off
from spatl.errors import ConfigError, told
from spatl.saliency.choosing import check_k, most_salient
from spatl.saliency.filters import Filters, layer_names
from spatl.saliency.maps import input_maps
from spatl.saliency.moments import Moments, standardised
from spatl.saliency.neighbours import nearest
from spatl.saliency.profiles import Profiles, profiles
from spatl.seeding import generator

logger = logging.getLogger(__name__)

_NO_SECOND_DERIVATIVE = re.compile("derivative|differentiate|[Dd]ouble backward")  # what PyTorch says of some layers

MEASURED: Final = 32
"""Errors of a group on which its filters are switched off, at most."""
OVERALL: Final = 128
"""Errors, of all groups together, on which each one's own filters are switched off, at most."""
RIGHT: Final = 64
"""Right predictions on which it is seen what a treatment breaks, at most."""
NEIGHBOURS: Final = 5
"""Neighbours by profile of an error, at most."""
OTHERS: Final = 16
"""Other errors that a repair is tried on, at most."""

Tell = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is of it."""


@dataclass(frozen=True)
class ExplainSettings:
    """Settings of an explanation.

    Attributes:
        num_examples: Errors of a group whose pictures are shown and that are repaired, at most.
        num_groups: Groups of errors that are shown, at most.
        top_k: How many filters are blamed.

    Raises:
        ConfigError: One of them is less than 1.
    """

    num_examples: int
    num_groups: int
    top_k: int

    def __post_init__(self) -> None:
        options = {"--examples": self.num_examples, "--groups": self.num_groups, "--top-k": self.top_k}
        for option, value in options.items():
            if value < 1:
                raise ConfigError(f"{option} must be at least 1, got {value}")


@dataclass(frozen=True)
class Blamed:
    """Filter that is blamed.

    Attributes:
        name: Its layer and its place in it.
        score: Mean over a group's errors.
    """

    name: str
    score: float


def first_of(blamed: Sequence[Blamed]) -> str:
    """Return the name of the filter that is blamed first, or a dash where its score is not above 0 either."""
    return blamed[0].name if blamed and blamed[0].score > 0 else "-"


@dataclass(frozen=True)
class Neighbour:
    """Wrong prediction that is near another by its profile.

    Attributes:
        place: Of the example, as of `ErrorExample`.
        true: Number of its class.
        predicted: Of the class it is taken for.
        cosine: Of the two profiles.
    """

    place: int
    true: int
    predicted: int
    cosine: float


@dataclass(frozen=True)
class ErrorExample:
    """Wrong prediction that is shown.

    Attributes:
        place: Of the example among those of the split that are looked at.
        loss: Its cross-entropy.
        confidence_true: Probability of the true class.
        confidence_predicted: Of the predicted one.
        neighbours: Errors of any group, the nearest by profile first.
    """

    place: int
    loss: float
    confidence_true: float
    confidence_predicted: float
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True)
class ErrorGroup:
    """Errors of one true and one predicted class.

    Attributes:
        true: Number of the class.
        predicted: Number of the other.
        num_errors: How many there are.
        num_of_class: Examples of the true class.
        num_measured: Errors on which filters were switched off.
        examples: Those that are shown, the highest losses first.
        salient: Filters by mean z.
        harmful: Filters by mean gradient times weight.
        switching: What becomes of the errors without these filters, and without those of controls.
        repair: What becomes of the shown examples, their neighbours and all others when these filters are trained.
    """

    true: int
    predicted: int
    num_errors: int
    num_of_class: int
    num_measured: int
    examples: tuple[ErrorExample, ...]
    salient: tuple[Blamed, ...]
    harmful: tuple[Blamed, ...]
    switching: tuple[Switching, ...]
    repair: tuple[Repair, ...]


@dataclass(frozen=True)
class LayerShare:
    """Layer, with its share of the filters that are blamed for single errors.

    Attributes:
        layer: Name.
        num_filters: Of the layer.
        share: Of all filters.
        salient: Share of the most salient k filters of each error that lie in it, mean over all errors.
        harmful: Likewise of the most harmful.
    """

    layer: str
    num_filters: int
    share: float
    salient: float
    harmful: float


@dataclass(frozen=True)
class Mistakes:
    """Errors of a model, and what filters have to do with them.

    Attributes:
        num_errors: All of them.
        layers: All of them, in the network's order; empty without errors.
        switching: Over the errors of all groups, each example's own filters off; empty without errors.
        num_switched: Errors of these.
        groups: The largest first.
        num_other_groups: Groups that are not shown.
        num_other_errors: Errors in them.
    """

    num_errors: int
    layers: tuple[LayerShare, ...] = ()
    switching: tuple[Switching, ...] = ()
    num_switched: int = 0
    groups: tuple[ErrorGroup, ...] = ()
    num_other_groups: int = 0
    num_other_errors: int = 0


Maps = Mapping[int, tuple[Tensor, Tensor]]
"""Input maps by the place of an example: the salient one and the plain gradient, float32 [H, W] both.

There are none of a network that has no second derivative.
"""


def find_mistakes(subject: Subject, settings: ExplainSettings, *, seed: int, tell: Tell) -> tuple[Mistakes, Maps]:
    """Return a model's errors on the split that is shown, and input maps of those that have pictures.

    Args:
        subject: The model and its examples.
        settings: How much is shown.
        seed: Draws the controls.
        tell: Told of progress.

    Raises:
        ModelError: The network has diverged.
        SpatlError: It has fewer filters than are to be blamed.
    """
    filters = subject.filters
    check_k(settings.top_k, filters)
    usual = _profiles(subject, subject.usual, filters, "profiles of the validation split", tell)
    shown = usual
    if subject.shown is not subject.usual:
        shown = _profiles(subject, subject.shown, filters, f"profiles of the {subject.split} split", tell)
    return _Finder(subject, settings, filters, usual, shown, seed).find(tell)


def confusions(labels: Tensor, predictions: Tensor) -> list[tuple[int, int, Tensor]]:
    """Return true and predicted class of each kind of error, and its places; the most frequent first.

    Args:
        labels: int64 [N].
        predictions: int64 [N].
    """
    wrong = (labels != predictions).nonzero().squeeze(1)
    kinds = sorted(set(zip(labels[wrong].tolist(), predictions[wrong].tolist(), strict=True)))
    found = [(true, said, wrong[(labels[wrong] == true) & (predictions[wrong] == said)]) for true, said in kinds]
    return sorted(found, key=lambda each: -len(each[2]))


class _Finder:
    """What is known while errors are looked at."""

    def __init__(
        self, subject: Subject, settings: ExplainSettings, filters: Filters, usual: Profiles, shown: Profiles, seed: int
    ) -> None:
        self._subject, self._settings, self._filters, self._shown = subject, settings, filters, shown
        self._moments = Moments.of(usual.absolute)
        self._z = standardised(shown.absolute, self._moments)
        self._blame = placed_in_the_middle(self._z, self._moments.deviations > 0).float()
        self._draws = generator(seed, "explain/controls")
        self._labels = subject.shown.targets.cpu()
        right = (shown.predictions == self._labels).nonzero().squeeze(1)
        self._right = _part_of(subject, right[torch.randperm(len(right), generator=self._draws)[:RIGHT]])
        wrong = (shown.predictions != self._labels).nonzero().squeeze(1)
        self._wrong = wrong[torch.randperm(len(wrong), generator=self._draws)]

    def find(self, tell: Tell) -> tuple[Mistakes, Maps]:
        kinds = confusions(self._labels, self._shown.predictions)
        most = self._settings.num_groups
        if not kinds:
            return Mistakes(0), {}
        steps = min(most, len(kinds)) + 1
        tell("filters switched off and repaired", 0, steps)
        switched = self._wrong[:OVERALL]
        switching = switched_off(
            self._subject.network, _part_of(self._subject, switched), None, self._scores(switched), self._filters,
            k=self._settings.top_k, generator=self._draws,
        )  # fmt: skip
        groups, maps = list[ErrorGroup](), dict[int, tuple[Tensor, Tensor]]()
        for number, (true, predicted, places) in enumerate(kinds[:most]):
            tell("filters switched off and repaired", number + 1, steps)
            group = self._group(true, predicted, places)
            maps |= self._maps([each.place for each in group.examples])
            groups.append(group)
        tell("filters switched off and repaired", steps, steps)
        rest = kinds[most:]
        mistakes = Mistakes(
            len(self._wrong), self._layers(), switching, len(switched), tuple(groups), len(rest),
            sum(len(places) for _, _, places in rest),
        )  # fmt: skip
        return mistakes, maps

    def _scores(self, places: Tensor) -> dict[str, Tensor]:
        return {SALIENT: self._blame[places], HARMFUL: self._shown.signed[places]}

    def _group(self, true: int, predicted: int, places: Tensor) -> ErrorGroup:
        scores = {name: each.mean(0, keepdim=True) for name, each in self._scores(places).items()}
        measured = places[:MEASURED]
        k, network, filters = self._settings.top_k, self._subject.network, self._filters
        order = self._shown.losses[places].argsort(descending=True, stable=True)
        first = places[order[: self._settings.num_examples]].tolist()
        found = [self._example(place) for place in first]
        return ErrorGroup(
            true=true,
            predicted=predicted,
            num_errors=len(places),
            num_of_class=int((self._labels == true).sum()),
            num_measured=len(measured),
            examples=tuple(each for each, _ in found),
            salient=self._blamed(scores[SALIENT][0]),
            harmful=self._blamed(scores[HARMFUL][0]),
            switching=switched_off(
                network, _part_of(self._subject, measured), self._right, scores, filters, k=k, generator=self._draws
            ),
            repair=repairs(
                network, [case for _, case in found], self._right, filters, k=k, generator=self._draws
            ),
        )  # fmt: skip

    def _example(self, place: int) -> tuple[ErrorExample, Case]:
        """Return a wrong prediction as it is shown, and as it is repaired."""
        own = torch.tensor([place])
        other = self._wrong[self._wrong != place]
        near, cosines = nearest(self._z[own], self._z[other], NEIGHBOURS)
        neighbours = other[near[0]]
        rest = other[~torch.isin(other, neighbours)][:OTHERS]
        part = _part_of(self._subject, own)
        with torch.no_grad():
            chances = self._subject.network(part.images).float().softmax(1)[0].cpu()
        example = ErrorExample(
            place=place,
            loss=float(self._shown.losses[place]),
            confidence_true=float(chances[self._labels[place]]),
            confidence_predicted=float(chances[self._shown.predictions[place]]),
            neighbours=tuple(
                Neighbour(each, int(self._labels[each]), int(self._shown.predictions[each]), cosine)
                for each, cosine in zip(neighbours.tolist(), cosines[0].tolist(), strict=True)
            ),
        )
        case = Case(part, self._scores(own), _part_of(self._subject, neighbours), _part_of(self._subject, rest))
        return example, case

    def _maps(self, places: list[int]) -> Maps:
        part = _part_of(self._subject, torch.tensor(places))
        try:
            found = input_maps(self._subject.network, part, self._filters, self._moments, k=self._settings.top_k)
        except RuntimeError as error:
            if not _NO_SECOND_DERIVATIVE.search(str(error)):
                raise
            logger.info("no input maps: %s", told(error))
            return {}
        return dict(zip(places, zip(found.salient, found.gradient, strict=True), strict=True))

    def _blamed(self, scores: Tensor) -> tuple[Blamed, ...]:
        best = scores.argsort(descending=True, stable=True)[: self._settings.top_k].tolist()
        names = layer_names(self._filters, best)
        return tuple(Blamed(name, float(scores[number])) for name, number in zip(names, best, strict=True))

    def _layers(self) -> tuple[LayerShare, ...]:
        scores, k = self._scores(self._wrong), self._settings.top_k
        shares = {name: most_salient(each, k).double().mean(0) for name, each in scores.items()}
        return tuple(
            LayerShare(
                layer.name,
                layer.num_filters,
                layer.num_filters / self._filters.num_filters,
                float(shares[SALIENT][layer.places].sum()) / k,
                float(shares[HARMFUL][layer.places].sum()) / k,
            )
            for layer in self._filters.layers
        )


def placed_in_the_middle(z: Tensor, varies: Tensor) -> Tensor:
    """Return z with filters that do not vary in the middle of the others, so that they are not blamed, nor the least.

    On errors whose gradients are small all round every other z may be below 0, which theirs is.

    Args:
        z: `[N, F]`.
        varies: bool [F].
    """
    if not bool(varies.any()):
        return z
    return torch.where(varies, z, z[:, varies].median(1, keepdim=True).values)


def _part_of(subject: Subject, places: Tensor) -> Examples:
    """Return some of the examples whose errors are shown, by their places."""
    return subject.shown.at(places.to(subject.device))


def _profiles(subject: Subject, examples: Examples, filters: Filters, what: str, tell: Tell) -> Profiles:
    return profiles(subject.network, examples, filters, progress=lambda done, total: tell(what, done, total))
