"""Diagnosis of a federation: the scores of every client, its place among all, and what they say in plain words.

It rests on what clients find out about one model (`spatl.saliency.findings`), so on what they say of themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from spatl.diagnosis.places import check_number, places
from spatl.diagnosis.relabelling import mixtures
from spatl.diagnosis.scores import SCORES, Scores, check_alike
from spatl.diagnosis.verdicts import (
    NOTHING,
    UNKNOWN,
    Evidence,
    Verdict,
    cannot_tell,
    evidence_of,
    evidence_of_updates,
    verdict_of,
)
from spatl.saliency.findings import Findings

LEAST_ACCURACY: Final = 0.7
"""Accuracy of the middle client below which a model knows too little to judge anybody's data by."""
BLIND: Final = (
    "a client that lies about its findings is taken at its word: only the cosine of its updates can show it",
    "an update that is turned against the others is seen by the cosine alone, which a run records",
    "what more than half of the clients have is what is usual",
    "where clients have few classes in common, honest ones are named more often",
)
"""What a diagnosis cannot see, a line each."""


@dataclass(frozen=True)
class ScoreOfClient:
    """Score of one client.

    Attributes:
        value: As of `spatl.diagnosis.scores`; None where it cannot be said.
        place: Robust standard deviations from the middle client, above 0 for what is worse.
    """

    value: float | None
    place: float | None


@dataclass(frozen=True)
class ClientDiagnosis:
    """Diagnosis of one client.

    Attributes:
        client: Its number.
        num_examples: Of its validation split.
        accuracy: Of the model on it.
        scores: By name, of `SCORES`; those that were not given are left out.
        evidence: How much speaks against it; more than 1 is enough for a verdict.
        verdict: What they say.
    """

    client: int
    num_examples: int
    accuracy: float
    scores: Mapping[str, ScoreOfClient]
    evidence: float
    verdict: Verdict


@dataclass(frozen=True)
class Diagnosis:
    """Diagnosis of all clients.

    Attributes:
        clients: In the order of their numbers.
        accuracy: Of the middle client: the median over clients, which a few sick ones do not move.
        can_tell: Whether the model knows enough (`LEAST_ACCURACY`); otherwise nothing is said of anybody's data.
        blind: What it cannot see, a line each.
    """

    clients: tuple[ClientDiagnosis, ...]
    accuracy: float
    can_tell: bool
    blind: tuple[str, ...] = BLIND

    @property
    def suspects(self) -> tuple[ClientDiagnosis, ...]:
        """Clients that something is said of."""
        return tuple(each for each in self.clients if each.verdict.kind not in (NOTHING, UNKNOWN))

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)


def diagnose(
    findings: Mapping[int, Findings], *, class_names: Sequence[str] = (), cosines: Mapping[int, float | None] = {},
    batch_norm: Mapping[int, float | None] = {},
) -> Diagnosis:  # fmt: skip
    """Compare each client with the others.

    Args:
        findings: Of each client, about the same model.
        class_names: One for each of the K classes; their numbers if there are none.
        cosines: Of each client's update with the sum of the others', mean over rounds; None or left out if unknown.
        batch_norm: Distance of each client's BatchNorm statistics from the federation's; likewise.

    Raises:
        SpatlError: There are fewer than `places.FEWEST` clients, or their findings are about different models.
    """
    check_number(len(findings))
    check_alike(findings)
    findings = dict(sorted(findings.items()))
    mixed = mixtures(findings)
    values: dict[str, Scores] = {
        "mislabelled": {client: each.mislabelled for client, each in mixed.items()},
        "cosine": {client: cosines.get(client) for client in findings},
        "batch_norm": {client: batch_norm.get(client) for client in findings},
    }
    values |= {name: score.of(findings) for name, score in SCORES.items() if score.of is not None}
    of_data = evidence_of(findings, values["mislabelled"], values["mean_z"])
    of_updates = evidence_of_updates(values["cosine"])
    by_name = {
        name: (values[name], places(values[name], worse=score.worse))
        for name, score in SCORES.items()
        if any(value is not None for value in values[name].values())
    }
    accuracies = {client: int(each.correct.sum()) / int(each.counts.sum()) for client, each in findings.items()}
    accuracy = float(np.median(list(accuracies.values())))
    can_tell = accuracy >= LEAST_ACCURACY
    names = tuple(class_names) or tuple(map(str, range(len(next(iter(findings.values())).counts))))
    clients = []
    for client, own in findings.items():
        scores = {name: ScoreOfClient(each[client], place[client]) for name, (each, place) in by_name.items()}
        against = Evidence(of_data[client] if can_tell else 0.0, of_updates[client], values["cosine"][client])
        verdict = verdict_of(own, mixed[client], against, names)
        if verdict.kind == NOTHING and not can_tell:
            verdict = cannot_tell(accuracy, LEAST_ACCURACY)
        number = int(own.counts.sum())
        clients.append(ClientDiagnosis(client, number, accuracies[client], scores, against.in_all, verdict))
    return Diagnosis(tuple(clients), accuracy, can_tell)
