"""Federations in which some clients' data are faulty, on data at hand: for the study of diagnosis and its tests."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from clients.app import app as client_app
from server.replies import blob_content
from spatl.artifacts.model_files import read_model
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config
from spatl.data import load_dataset, partition
from spatl.data.own import as_found
from spatl.diagnosis.own_data import compute_findings
from spatl.diagnosis.run import mean_cosines
from spatl.json_files import read_json, write_json
from spatl.runs.findings import read_findings, write_findings
from spatl.saliency.filters import main_filters
from spatl.saliency.findings import Findings
from spatl.seeding import numpy_generator
from tests.support.federations import blob_of, run_tiny, scaled, tampering

NUM_CLIENTS, NUM_SICK, ALPHA = 13, 3, 0.5
HONEST, RELABELLED, NOISY, RANDOM, FLIPPED = (
    "no fault", "relabelled class", "sensor noise", "random labels", "flipped update",
)  # fmt: skip
FAULTS = (HONEST, RELABELLED, NOISY, RANDOM, FLIPPED)
_NOISE = 1.0  # standard deviations of all pixels
_LEAST_SHARE = 0.1  # of a client's examples, that the class has which is relabelled

SETTINGS: dict[str, dict[str, Any]] = {
    "synthetic": {
        "rounds": 12,
        "data": {"name": "synthetic", "options": {"num_examples": 3000, "difficulty": 0.3, "image_size": 16}},
        "model": {"name": "resnet8", "options": {"width": 0.5}},
        "training": {"local_epochs": 2, "batch_size": 16, "learning_rate": 0.16, "momentum": 0.9, "device": "cpu"},
    },
    "digits": {
        "rounds": 10,
        "data": {"name": "digits"},
        "model": {"name": "cnn", "options": {"channels": [8, 16], "hidden": 32}},
        "training": {"local_epochs": 2, "batch_size": 16, "learning_rate": 0.02, "momentum": 0.9, "device": "cpu"},
    },
}


@dataclass(frozen=True, eq=False)
class Case:
    """A federation that was trained, and what is known of it.

    Attributes:
        sick: The clients that have the fault.
        relabelled: Of each whose class was, the class that its labels say and the one that its examples are of.
        findings: Of each client.
        with_offset: The same of the model with each client's own label offset.
        batch_norm: Distance of each client's BatchNorm statistics.
        cosines: Of each client's updates.
    """

    sick: tuple[int, ...]
    relabelled: Mapping[int, tuple[int, int]]
    findings: Mapping[int, Findings]
    with_offset: Mapping[int, Findings]
    batch_norm: Mapping[int, float | None]
    cosines: Mapping[int, float | None]


def case_of(data: str, fault: str, *, seed: int, alpha: float = ALPHA, keep: Path | None = None) -> Case:
    """Train a federation with a fault, and take its clients' findings.

    Args:
        data: Of `SETTINGS`.
        fault: Of `FAULTS`.
        seed: Draws all there is.
        alpha: Of the Dirichlet partition.
        keep: A directory to keep cases in, and to take one from that was kept.
    """
    skew = "" if alpha == ALPHA else f"-alpha-{alpha:g}"
    kept = None if keep is None else keep / f"{data}-{fault.replace(' ', '-')}-{seed}{skew}"
    if kept is not None and (kept / "case.json").exists():
        return _read(kept)
    with tempfile.TemporaryDirectory() as scratch:
        path, run = Path(scratch) / "shares.npz", Path(scratch) / "run"
        sick, relabelled = plant(data, fault, seed=seed, alpha=alpha, path=path)

        def flip(client: int, content: RecordDict) -> RecordDict:
            return blob_content(scaled(blob_of(content), -1.0)) if client in sick else content

        run_tiny(config_of(data, path, seed=seed), run, app=tampering(flip) if fault == FLIPPED else client_app)
        computed = compute_findings(run, offset=True)
        case = Case(
            sick, relabelled, read_findings(run).by_client, computed.findings, computed.batch_norm, mean_cosines(run)
        )
        if kept is not None:
            _keep(case, kept, run)
    return case


def plant(
    data: str, fault: str, *, seed: int, path: Path, alpha: float = ALPHA
) -> tuple[tuple[int, ...], dict[int, tuple[int, int]]]:  # fmt: skip
    """Share a data set out, make some clients sick, and write it all with each example's owner.

    Args:
        data: Of `SETTINGS`.
        fault: Of `FAULTS`.
        seed: Draws all there is.
        path: An .npz file.
        alpha: Of the Dirichlet partition.

    Returns:
        The sick clients, and what was relabelled.
    """
    source = SETTINGS[data]["data"]
    with as_found():
        dataset = load_dataset(source["name"], seed=seed, options=source.get("options", {}))
    images, labels = dataset.inputs.numpy().copy(), dataset.targets.numpy().copy()
    parts = partition(
        dataset.targets, name="dirichlet", num_clients=NUM_CLIENTS, seed=seed, alpha=alpha, labels_per_client=None,
        min_examples=40,
    )  # fmt: skip
    rng, relabelled, owners = numpy_generator(seed, f"faults-{fault}"), {}, np.zeros(len(labels), dtype=np.int64)
    drawn = sorted(rng.choice(NUM_CLIENTS, NUM_SICK, replace=False).tolist())
    sick = () if fault == HONEST else tuple(drawn)
    for client, part in enumerate(parts):
        owners[part] = client
    deviation = float(images.std())
    for client in sick:
        own = parts[client].numpy()
        if fault == RELABELLED:
            relabelled[client] = _relabel_(labels, own, rng)
        elif fault == NOISY:
            images[own] += _NOISE * deviation * rng.standard_normal(images[own].shape, dtype=np.float32)
        elif fault == RANDOM:
            labels[own] = rng.integers(dataset.num_classes, size=len(own))
    np.savez(path, images=images, labels=labels, groups=owners)
    return sick, relabelled


def config_of(data: str, path: Path, *, seed: int) -> ExperimentConfig:
    """The config of a run on the shares in a file."""
    return parse_config(
        {
            **SETTINGS[data],
            "seed": seed,
            "data": {"name": "npz", "options": {"path": str(path)}},
            "partition": {"name": "natural", "num_clients": NUM_CLIENTS, "min_examples": 1},
            "selection": {"selector": "update", "keep_ratio": 0.8},
            "wire": {"uplink": "float32", "downlink": "adaptive"},
            "report": {"split": "validation", "findings": "end"},
        }
    )


def lying(case: Case) -> Case:
    """The same case where the sick tell what others found out."""
    honest = [client for client in case.findings if client not in case.sick]
    source = {client: honest[place] for place, client in enumerate(case.sick)}
    findings, with_offset = (
        {client: own[source.get(client, client)] for client in own} for own in (case.findings, case.with_offset)
    )
    return replace(case, findings=findings, with_offset=with_offset)


def _relabel_(labels: NDArray[np.int64], own: NDArray[np.int64], rng: np.random.Generator) -> tuple[int, int]:
    """Label all of one class of a client's as another; return that and the class it was."""
    shares = np.bincount(labels[own], minlength=10) / len(own)
    was = int(rng.choice(np.flatnonzero(shares >= _LEAST_SHARE)))
    says = int(rng.choice([each for each in range(10) if each != was]))
    labels[own[labels[own] == was]] = says
    return says, was


def _keep(case: Case, directory: Path, run: Path) -> None:
    filters = main_filters(read_model(run).network)
    for number, findings in ((1, case.findings), (2, case.with_offset)):
        write_findings(directory, number, findings, filters=filters, class_names=[str(each) for each in range(10)])
    numbers = {name: list(getattr(case, name).items()) for name in ("relabelled", "batch_norm", "cosines")}
    write_json(directory / "case.json", {"sick": case.sick, **numbers})


def _read(directory: Path) -> Case:
    said = read_json(directory / "case.json")
    return Case(
        sick=tuple(said["sick"]),
        relabelled={client: (says, was) for client, (says, was) in said["relabelled"]},
        findings=read_findings(directory, 1).by_client,
        with_offset=read_findings(directory, 2).by_client,
        batch_norm=dict(said["batch_norm"]),
        cosines=dict(said["cosines"]),
    )
