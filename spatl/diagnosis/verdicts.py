"""Verdicts: what the places of a client's scores say of it, in plain words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from spatl.diagnosis.relabelling import relabelled_class
from spatl.saliency.findings import Findings

NOTHING: Final = "nothing found"
RELABELLED: Final = "relabelled class"
RANDOM: Final = "random labels"
NOISY: Final = "noisy images"
AGAINST: Final = "update against the others"
UNKNOWN: Final = "cannot tell"
KINDS: Final = (NOTHING, RELABELLED, RANDOM, NOISY, AGAINST, UNKNOWN)
"""Kinds of verdicts."""
_FAR = 3.5  # robust standard deviations


@dataclass(frozen=True)
class Verdict:
    """Verdict on one client.

    Attributes:
        kind: One of `KINDS`.
        text: In plain words.
        false_alarms: Share of honest clients that have got this kind where it was measured; None where nothing is said.
        labelled: Of a relabelled class, the class that its labels say; None of others.
        looks_like: And the class that the examples look like.
    """

    kind: str
    text: str
    false_alarms: float | None = None
    labelled: int | None = None
    looks_like: int | None = None


def cannot_tell(accuracy: float, least: float) -> Verdict:
    """Return the verdict of a model that knows too little."""
    return Verdict(
        UNKNOWN, f"cannot tell: the model is right on {100 * accuracy:.0f} % of the middle client's examples, and "
        f"{100 * least:.0f} % are needed"
    )  # fmt: skip


def verdict_of(
    client: int, findings: Mapping[int, Findings], places: Mapping[str, float | None], class_names: Sequence[str]
) -> Verdict:
    """Return what the scores of a client say.

    Args:
        client: Its number.
        findings: Of all clients.
        places: Of the client, by the name of the score.
        class_names: Of the K classes.
    """
    far = {name for name, place in places.items() if place is not None and place > _FAR}
    if "cosine" in far and not far & {"mean_z", "loss", "saliency"}:
        return Verdict(AGAINST, "its updates point against the others'")
    if not far & {"mean_z", "loss", "saliency"}:
        return Verdict(NOTHING, "nothing found")
    if (found := relabelled_class(client, findings)) is not None:
        labelled, looks_like = found
        return Verdict(
            RELABELLED, f"labels of class {class_names[labelled]} look like class {class_names[looks_like]} "
            "(relabelled class)", labelled=labelled, looks_like=looks_like,
        )  # fmt: skip
    own = findings[client]
    if int(own.correct.sum()) / int(own.counts.sum()) < 2 / len(own.counts):
        return Verdict(RANDOM, "labels are right no more often than by chance (random labels)")
    return Verdict(NOISY, "examples of all classes are harder than others' (noisy images)")
