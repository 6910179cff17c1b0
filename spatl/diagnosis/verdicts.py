"""Verdicts: what the scores of a client say of its data and of its updates, in plain words.

Two scores tell of its data: the share of its examples that look like other classes than their labels', and its mean z.
Each is taken above the middle client's, in units of a limit that honest clients seldom reach; the larger of the two
is the evidence of its data. The cosine tells of its updates, by its place. Above 1 in all there is a verdict. What it
is follows from whose examples look like what. Limits are from planted faults (docs/diagnosis.md), on other seeds than
those that the rates of false alarms were measured on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from spatl.diagnosis.places import places
from spatl.diagnosis.relabelling import Mixture
from spatl.diagnosis.scores import Scores
from spatl.saliency.findings import Findings

NOTHING: Final = "nothing found"
RELABELLED: Final = "relabelled class"
RANDOM: Final = "random labels"
NOISY: Final = "noisy images"
AGAINST: Final = "update against the others"
UNKNOWN: Final = "cannot tell"
KINDS: Final = (NOTHING, RELABELLED, RANDOM, NOISY, AGAINST, UNKNOWN)
"""Kinds of verdicts."""
MEASURED: Final = 221
"""Honest clients in federations without a fault that verdicts were tried on (docs/diagnosis.md has the command)."""
FALSE_ALARMS: Final[Mapping[str, int]] = {RELABELLED: 0, RANDOM: 0, NOISY: 11, AGAINST: 0}
"""How many of them got each verdict."""
MISLABELLED_LIMIT: Final = 0.12
"""Share of mislabelled examples above the middle client's."""
MEAN_Z_LIMIT: Final = 0.28
"""Mean z above the middle client's, of many examples."""
COSINE_LIMIT: Final = 4.0
"""Place of the cosine, in robust standard deviations."""
_LEAST_SPREAD = 0.05  # of cosines, that is taken for one robust standard deviation at least
_FEW = 20  # examples of which half of a mean z is taken for chance
_OF_ONE_PAIR = 0.5  # share of all mislabelled examples that are in one pair of classes if one class was relabelled
_LITTLE = 0.5  # evidence of data that says nothing of what they have


@dataclass(frozen=True)
class Verdict:
    """Verdict on one client.

    Attributes:
        kind: One of `KINDS`.
        text: In plain words.
        false_alarms: Share of honest clients that got this kind where it was measured; None where nothing is said.
        labelled: Of a relabelled class, the class that its labels say; None of others.
        looks_like: And the class that the examples look like.
    """

    kind: str
    text: str
    false_alarms: float | None = None
    labelled: int | None = None
    looks_like: int | None = None


def evidence_of(findings: Mapping[int, Findings], mislabelled: Scores, mean_z: Scores) -> dict[int, float]:
    """Return how much speaks against each client's data, at least 0; 1 is what honest clients seldom reach.

    Args:
        findings: Of all clients.
        mislabelled: Of all clients, as of `spatl.diagnosis.scores`.
        mean_z: Likewise.
    """
    labels, profiles = _above_the_middle(mislabelled), _above_the_middle(mean_z)
    found = {}
    for client, own in findings.items():
        number = int(own.counts.sum())
        of_profile = profiles[client] * number / (number + _FEW) / MEAN_Z_LIMIT
        found[client] = max(0.0, of_profile, labels[client] / MISLABELLED_LIMIT)
    return found


@dataclass(frozen=True)
class Evidence:
    """Evidence against one client; 1 in all is what honest clients seldom reach.

    Attributes:
        of_data: As of `evidence_of`; 0 where the model knows too little.
        of_updates: As of `evidence_of_updates`.
        cosine: Of its updates with the others' sums; None if unknown.
    """

    of_data: float
    of_updates: float
    cosine: float | None

    @property
    def in_all(self) -> float:
        """The sum."""
        return self.of_data + self.of_updates

    @property
    def is_of_updates(self) -> bool:
        """True where its updates are unlike the others', and not its data."""
        against = self.cosine is not None and self.cosine < 0
        return self.of_data <= 1 and (against or self.of_data <= _LITTLE)


def evidence_of_updates(cosines: Scores) -> dict[int, float]:
    """Return how much the cosine of its updates speaks against each client, at least 0; 0 where there is none.

    By its place, but where clients are so much alike that a small difference is far off, by the difference itself.

    Args:
        cosines: Of all clients.
    """
    below = {client: -each for client, each in _above_the_middle(cosines).items()}
    found = {}
    for client, place in places(cosines, worse=-1).items():
        far = min(place or 0.0, below[client] / _LEAST_SPREAD)
        found[client] = max(0.0, far) / COSINE_LIMIT
    return found


def verdict_of(own: Findings, mixture: Mixture, evidence: Evidence, class_names: Sequence[str]) -> Verdict:
    """Return what is said of a client.

    Args:
        own: Its findings.
        mixture: Of the classes that its labels stand on.
        evidence: Against it.
        class_names: Of the K classes.
    """
    if evidence.in_all <= 1:
        return Verdict(NOTHING, NOTHING)
    if evidence.is_of_updates:
        against = evidence.cosine is not None and evidence.cosine < 0
        where = "against the others'" if against else "elsewhere than the others', and its findings do not say why"
        return _verdict(AGAINST, f"its updates point {where} (update against the others)")
    labelled, looks_like, share = mixture.largest
    if share < _OF_ONE_PAIR and _right_by_chance(own):
        return _verdict(RANDOM, "labels are right no more often than by chance (random labels)")
    mostly = int(own.labels[looks_like]) < mixture.counts_of(labelled, looks_like)
    if share >= _OF_ONE_PAIR and mixture.mislabelled > MISLABELLED_LIMIT / 2 and mostly:
        names = f"labels of class {class_names[labelled]} look like class {class_names[looks_like]}"
        return _verdict(RELABELLED, f"{names} (relabelled class)", labelled, looks_like)
    return _verdict(NOISY, "examples are unlike others' of the same classes (noisy images)")


def cannot_tell(accuracy: float, least: float) -> Verdict:
    """Return the verdict of a model that knows too little."""
    text = (
        f"the model is right on {100 * accuracy:.0f} % of the middle client's examples, {100 * least:.0f} % are needed"
    )
    return Verdict(UNKNOWN, f"cannot tell: {text}")


def _verdict(kind: str, text: str, labelled: int | None = None, looks_like: int | None = None) -> Verdict:
    return Verdict(kind, text, FALSE_ALARMS[kind] / MEASURED, labelled, looks_like)


def _above_the_middle(scores: Scores) -> dict[int, float]:
    """Return by how much each score is above the median, 0 for those that cannot be said."""
    known = [value for value in scores.values() if value is not None]
    middle = float(np.median(known)) if known else 0.0
    return {client: 0.0 if value is None else value - middle for client, value in scores.items()}


def _right_by_chance(own: Findings) -> bool:
    """Return whether labels are right no more often than they may be by chance, within two standard errors."""
    chance, number = 1 / len(own.counts), int(own.counts.sum())
    return int(own.correct.sum()) / number <= chance + 2 * math.sqrt(chance * (1 - chance) / number)
