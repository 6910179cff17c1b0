"""How well `spatl diagnose` finds clients whose data are faulty, by score and by fault, and whom it accuses wrongly.

`python -m tests.studies.diagnosis [SEED ...]` trains federations of thirteen clients, Dirichlet 0.5 if nothing else is
said, of whom three have the same fault, on two data sets: a ResNet-8 on synthetic images, a small CNN on the digits.
The faults, in all of a client's splits: all examples of one class, of at least a tenth of the client's, labelled as
another; noise on all images, as large as the images' own deviation; random labels; updates times -1; and random labels
of clients that tell others' findings as theirs.

Printed: for each score the area under the ROC curve, the share of pairs of a sick and an honest client of a federation
that it puts in the right order, mean and standard deviation over the federations; then what verdicts say of sick and of
honest clients. `--fit SEED ...` adds a logistic regression on six scores' places, fitted on the other data set's
federations of these seeds; `--offset` takes the model with each client's own label offset instead.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.diagnosis.panel import Diagnosis, diagnose
from spatl.diagnosis.scores import SCORES
from spatl.diagnosis.verdicts import AGAINST, KINDS, NOTHING, UNKNOWN
from spatl.diagnosis.verdicts import NOISY as NOISY_IMAGES
from spatl.diagnosis.verdicts import RANDOM as RANDOM_LABELS
from spatl.diagnosis.verdicts import RELABELLED as RELABELLED_CLASS
from tests.support.faults import (
    ALPHA,
    FAULTS,
    FLIPPED,
    HONEST,
    NOISY,
    RANDOM,
    RELABELLED,
    SETTINGS,
    Case,
    case_of,
    lying,
)

LYING: Final = "random labels, lying"
EVIDENCE: Final = "evidence"
OF_DATA: Final = "evidence, without cosines"
LOGISTIC: Final = "logistic regression"
FEATURES: Final = ("mean_z", "loss", "worst_class", "prototypes", "saliency", "mislabelled")
RIGHT: Final = {
    RELABELLED: RELABELLED_CLASS, NOISY: NOISY_IMAGES, RANDOM: RANDOM_LABELS, FLIPPED: AGAINST, LYING: RANDOM_LABELS,
}  # fmt: skip
"""The verdict on each fault that is right."""

Cases = Mapping[tuple[str, str], Sequence[Case]]
"""Federations by data set and fault."""


def auroc(sick: Sequence[float], honest: Sequence[float]) -> float:
    """The share of pairs in which the sick one has the larger number; of equal ones, half."""
    differences = np.subtract.outer(np.asarray(sick, dtype=float), np.asarray(honest, dtype=float))
    return float(np.mean((differences > 0) + 0.5 * (differences == 0)))


def diagnosis_of(case: Case, *, offset: bool = False) -> Diagnosis:
    """The diagnosis of a federation."""
    findings = case.with_offset if offset else case.findings
    return diagnose(findings, cosines=case.cosines, batch_norm=case.batch_norm)


def features_of(diagnosis: Diagnosis) -> Tensor:
    """The places of some scores, `[clients, 6]`, large ones drawn to the middle."""
    return torch.tensor([[each.scores[name].place or 0.0 for name in FEATURES] for each in diagnosis.clients]).asinh()


def fitted(cases: Iterable[Case]) -> Tensor:
    """The weights of a logistic regression that tells the sick from the honest, and its bias last, `[7]`."""
    rows = [(features_of(diagnosis_of(case)), case.sick) for case in cases]
    inputs = torch.cat([torch.cat([each, torch.ones(len(each), 1)], 1) for each, _ in rows]).double()
    sick = torch.cat([torch.tensor([client in own for client in range(len(each))]) for each, own in rows]).double()
    weight = torch.where(sick > 0, (1 - sick).sum() / sick.sum(), 1.0)
    weights = torch.zeros(inputs.shape[1], dtype=torch.float64)
    for _ in range(50):  # Newton's steps, with a little weight decay
        chance = (inputs @ weights).sigmoid()
        gradient = inputs.T @ (weight * (chance - sick)) + weights
        curvature = inputs.T @ ((weight * chance * (1 - chance))[:, None] * inputs) + torch.eye(len(weights))
        weights = weights - torch.linalg.solve(curvature, gradient)
    return weights


def numbers_of(diagnosis: Diagnosis, weights: Tensor | None) -> dict[str, list[float]]:
    """Each score of the clients, so that more is worse; without those that some client has none of."""
    found = {EVIDENCE: [each.evidence for each in diagnosis.clients]}
    for name in diagnosis.clients[0].scores:
        values = [each.scores[name].value for each in diagnosis.clients]
        if None not in values:
            found[name] = [SCORES[name].worse * value for value in values if value is not None]
    if weights is not None:
        found[LOGISTIC] = (features_of(diagnosis).double() @ weights[:-1]).tolist()
    return found


def areas(cases: Sequence[Case], weights: Tensor | None, *, offset: bool) -> dict[str, NDArray[np.float64]]:
    """The area under the curve of each score, one for each federation."""
    found: dict[str, list[float]] = {}
    for case in cases:
        numbers = numbers_of(diagnosis_of(case, offset=offset), weights)
        numbers[OF_DATA] = numbers_of(diagnosis_of(replace(case, cosines={}), offset=offset), None)[EVIDENCE]
        for name, values in numbers.items():
            sick = [value for client, value in enumerate(values) if client in case.sick]
            honest = [value for client, value in enumerate(values) if client not in case.sick]
            found.setdefault(name, []).append(auroc(sick, honest))
    return {name: np.array(each) for name, each in found.items()}


def print_areas(cases: Cases, fits: Mapping[str, Tensor], *, offset: bool) -> None:
    """Print the table of areas."""
    columns = [key for key in cases if key[1] != HONEST]
    print("| score | " + " | ".join(f"{data}: {fault}" for data, fault in columns) + " |")
    print("|---|" + "---:|" * len(columns))
    by_column = {key: areas(cases[key], fits.get(key[0]), offset=offset) for key in columns}
    for name in (*SCORES, OF_DATA, EVIDENCE, *([LOGISTIC] if fits else [])):
        cells = []
        for key in columns:
            values = by_column[key].get(name)
            cells.append("" if values is None else f"{values.mean():.2f} ± {values.std(ddof=len(values) > 1):.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def print_verdicts(cases: Cases, *, offset: bool) -> None:
    """Print what verdicts say."""
    print("| federations | sick | named rightly | named otherwise | classes named rightly | honest | named |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    alarms, honest_clients = Counter[str](), 0
    for (data, fault), own in cases.items():
        sick, honest, pairs, told = Counter[str](), Counter[str](), 0, 0
        for case in own:
            for each in diagnosis_of(case, offset=offset).clients:
                (sick if each.client in case.sick else honest)[each.verdict.kind] += 1
                named = (each.verdict.labelled, each.verdict.looks_like)
                pairs += each.client in case.relabelled and named == case.relabelled[each.client]
                told += each.verdict.kind == UNKNOWN and each.client in case.sick
        number, others = sum(sick.values()), sum(honest.values())
        right = sick[RIGHT[fault]] if fault in RIGHT else 0
        otherwise = number - right - sick[NOTHING] - told
        accused = others - honest[NOTHING] - honest[UNKNOWN]
        print(
            f"| {data}: {fault} ({len(own)}) | {number} | {right} | {otherwise} "
            f"| {pairs if fault == RELABELLED else ''} | {others} | {accused} |", flush=True,
        )  # fmt: skip
        if fault == HONEST:
            alarms += honest
            honest_clients += others
    for kind in KINDS:
        print(f"federations without a fault, {kind}: {alarms[kind]} of {honest_clients}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.diagnosis")
    parser.add_argument("seeds", type=int, nargs="*", default=[1, 2, 3, 4, 5])
    parser.add_argument("--data", default=",".join(SETTINGS), help="data sets, separated by commas")
    parser.add_argument("--faults", default=",".join(FAULTS), help="faults, separated by commas")
    parser.add_argument("--fit", type=int, nargs="+", default=[], help="seeds of the regression's federations")
    parser.add_argument("--alpha", type=float, default=ALPHA, help="of the Dirichlet partition")
    parser.add_argument("--offset", action="store_true", help="the model with each client's own label offset")
    parser.add_argument("--keep", type=Path, help="a directory to keep federations in, and to take them from")
    options = parser.parse_args()

    def trained(data: str, fault: str, seeds: Sequence[int]) -> list[Case]:
        return [case_of(data, fault, seed=seed, alpha=options.alpha, keep=options.keep) for seed in seeds]

    names, cases = options.data.split(","), dict[tuple[str, str], Sequence[Case]]()
    for data in names:
        for fault in options.faults.split(","):
            cases[data, fault] = trained(data, fault, options.seeds)
            if fault == RANDOM:
                cases[data, LYING] = [lying(case) for case in cases[data, fault]]
    fits = {}
    if options.fit:
        for data in names:
            others = [name for name in SETTINGS if name != data]
            kinds = (HONEST, RELABELLED, NOISY, RANDOM)
            fits[data] = fitted(each for name in others for kind in kinds for each in trained(name, kind, options.fit))
            print(f"{data}: " + ", ".join(f"{w:.2f}" for w in fits[data]) + f" ({', '.join(FEATURES)}, bias)")
    print_areas(cases, fits, offset=options.offset)
    print_verdicts(cases, offset=options.offset)


if __name__ == "__main__":
    main()
