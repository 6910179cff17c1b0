"""What `server.norm_bound` does to honest clients whose data are unusual: very many, very few, of few classes, late.

`python -m tests.studies.skews [SEED ...]` runs each situation with default settings and prints the table of
docs/robustness.md: updates refused, the largest update in units of the usual one, and accuracies on the clients' test
splits beside those with `norm_bound: null`. Where nobody is refused, these two runs are the same to the bit, and one is
enough.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from flwr.app import Message

from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config
from spatl.data import load_dataset
from spatl.rounds.admission import Size, check_size
from tests.studies.attacks.situations import SMALL
from tests.support.federations import run_tiny

ALL = tuple(range(10))


@dataclass(frozen=True)
class Situation:
    """A federation in which some clients are unusual, and none is bad.

    Attributes:
        owners: The number of digits and the classes of each client; empty where `settings` has a partition.
        settings: Sections of the config that are not the defaults.
        absent: Clients whose replies are lost before a round, and that round.
    """

    owners: Sequence[tuple[int, Sequence[int]]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    absent: Mapping[int, int] = field(default_factory=dict)


def one_large(large: int, small: int, **settings: Any) -> Situation:
    """Ten clients, one of which has more digits than the others."""
    return Situation([(large, ALL), *[(small, ALL)] * 9], settings)


def late(**settings: Any) -> Situation:
    """Ten clients, one of which joins in round 15 and alone has two of the classes."""
    return Situation([*[(150, range(8))] * 9, (150, (8, 9))], {"rounds": 30, **settings}, absent={9: 15})


def _labels(number: int, **settings: Any) -> Situation:
    return Situation(settings={"partition": {"name": "labels", "labels_per_client": number}, **settings})


def _dirichlet(num_clients: int, alpha: float, **settings: Any) -> Situation:
    partition = {"num_clients": num_clients, "alpha": alpha, "min_examples": 4}
    return Situation(settings={"partition": partition, **settings})


def _images(number: int) -> dict[str, Any]:
    return {"name": "synthetic", "options": {"num_examples": number, "difficulty": 0.3, "image_size": 8}}


_CLASS_EACH = [*[(80, (label,)) for label in range(9)], (500, ALL)]
_MOMENTUM = {"momentum": 0.9, "learning_rate": 0.02}
_RESNET = {"name": "resnet8", "options": {"width": 0.5}}

SITUATIONS = {
    "spatl, one of 900, nine of 90": one_large(900, 90),
    "spatl, one of 900, nine of 18": one_large(900, 18),
    "spatl, one of 400, nine of 20": one_large(400, 20),
    "spatl, one of 1000, nine of 10": one_large(1000, 10),
    "spatl, one of 10, eight of 220": Situation([(10, ALL), *[(220, ALL)] * 8]),
    "spatl, 10, 20, 40, ... 640": Situation([(10 * 2**power, ALL) for power in range(7)]),
    "fedavg, one of 400, nine of 20": one_large(400, 20, method="fedavg"),
    "fedavg, one of 10, eight of 220": Situation([(10, ALL), *[(220, ALL)] * 8], {"method": "fedavg"}),
    "fedavg, 10, 20, 40, ... 640": Situation([(10 * 2**power, ALL) for power in range(7)], {"method": "fedavg"}),
    **{
        f"{method}, one of 900, nine of 30": one_large(900, 30, method=method)
        for method in ("fedavg", "fedprox", "fednova", "scaffold", "fedrep", "ssfl", "spatl-paper")
    },
    "fednova, server rate 0.2, one of 900, nine of 30": one_large(
        900, 30, method="fednova", server={"learning_rate": 0.2}
    ),
    "fedavg, momentum, one of 900, nine of 18": one_large(900, 18, method="fedavg", training=_MOMENTUM),
    "fedavg, 100 steps each, one of 900, nine of 30": one_large(
        900, 30, method="fedavg", training={"local_steps": 100}
    ),
    "spatl, twenty of one class": _labels(1),
    "spatl, twenty of two classes": _labels(2),
    "fedavg, twenty of one class": _labels(1, method="fedavg"),
    **{
        f"{method}, nine of one class, one of all": Situation(_CLASS_EACH, {"method": method})
        for method in ("spatl", "fedavg", "fedrep")
    },
    "fedrep, the same, ten epochs for the head": Situation(
        _CLASS_EACH, {"method": "fedrep", "training": {"head_epochs": 10}}
    ),
    "fedrep, all but one converge": Situation(
        [*[(100, (label, label + 1)) for label in range(8)], (300, ALL)],
        {"method": "fedrep", "rounds": 40, "training": {"local_epochs": 4}},
    ),
    "spatl, Dirichlet 0.05, 10": _dirichlet(10, 0.05),
    "fedavg, Dirichlet 0.05, 10": _dirichlet(10, 0.05, method="fedavg"),
    "spatl, Dirichlet 0.1, 100, ten a round": _dirichlet(
        100, 0.1, data=_images(8000), server={"fraction_train": 0.1}, rounds=40
    ),
    "spatl, ResNet-8, Dirichlet 0.1, 10": _dirichlet(10, 0.1, data=_images(4000), model=_RESNET, rounds=15),
    **{f"{method}, one joins in round 15": late(method=method) for method in ("spatl", "fedavg", "fedrep")},
}


def write_owners(path: Path, owners: Sequence[tuple[int, Sequence[int]]], *, seed: int) -> None:
    """Deal digits out to owners, so many of some classes to each, to a file for `npz`."""
    digits = load_dataset("digits", seed=seed, options={})
    labels = digits.targets.numpy()
    left = np.random.default_rng(seed).permutation(len(labels))
    dealt, groups = [], []
    # Those of few classes first, so that one of all does not take what they need.
    for owner in sorted(range(len(owners)), key=lambda each: (len(owners[each][1]), each)):
        number, classes = owners[owner]
        own = left[np.isin(labels[left], list(classes))][:number]
        if len(own) < number:
            raise ValueError(f"owner {owner} gets {len(own)} of {number} digits")
        left = np.setdiff1d(left, own, assume_unique=True)
        left = np.random.default_rng([seed, owner]).permutation(left)
        dealt.append(own)
        groups.append(np.full(number, owner))
    rows = np.concatenate(dealt)
    np.savez(path, images=digits.inputs.numpy()[rows], labels=labels[rows], groups=np.concatenate(groups))


def config_of(situation: Situation, path: Path, *, seed: int, norm_bound: float | None = 10.0) -> ExperimentConfig:
    """The config of a situation; its digits, if it deals them out, are put to `path`."""
    values: dict[str, Any] = {"model": SMALL, **situation.settings, "seed": seed}
    if situation.owners:
        write_owners(path, situation.owners, seed=seed)
        values["data"] = {"name": "npz", "options": {"path": str(path)}}
        values["partition"] = {"name": "natural", "num_clients": len(situation.owners)}
    values["training"] = {**values.get("training", {}), "device": "cpu"}
    values["server"] = {**values.get("server", {}), "norm_bound": norm_bound}
    return parse_config(values)


def run_situation(
    situation: Situation, directory: Path, *, seed: int, norm_bound: float | None = 10.0
) -> tuple[dict[str, Any], float]:
    """The summary of a run, and its largest update in units of what was usual."""
    directory.mkdir()
    config = config_of(situation, directory / "owners.npz", seed=seed, norm_bound=norm_bound)

    def loses(client: int, message: Message) -> bool:
        metadata = message.metadata
        return metadata.message_type == "train" and int(metadata.group_id) < situation.absent.get(client, 0)

    with _measured() as times:
        summary = run_tiny(config, directory / "run", loses=loses)
    return summary, max(times)


@contextmanager
def _measured() -> Iterator[list[float]]:
    """Note how large updates are as the server checks them."""
    times: list[float] = []

    def look(size: Size, usual: Size | None, bound: float | None) -> None:
        times.append(size.times(usual) if usual is not None else 0.0)
        check_size(size, usual, bound)

    with mock.patch("spatl.rounds.answers.check_size", look):
        yield times


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.skews")
    parser.add_argument("seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--agreement", action="store_true", help="server.aggregation: agreement where classes lack")
    parser.add_argument("--only", action="append", help="the situations whose names contain this; may be repeated")
    options = parser.parse_args()
    if options.agreement:
        _print_agreement(options.seeds)
        return
    print("| situation | refused | largest | accuracy, worst client | with `norm_bound: null` |", flush=True)
    print("|---|---:|---:|---:|---:|", flush=True)
    for name in (name for name in SITUATIONS if any(part in name for part in options.only or [""])):
        refused, largest, rows = 0, 0.0, []
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as scratch:
                summary, times = run_situation(SITUATIONS[name], Path(scratch) / "bound", seed=seed)
                free = summary
                if summary["rejected"]:
                    free, _ = run_situation(SITUATIONS[name], Path(scratch) / "free", seed=seed, norm_bound=None)
            refused, largest = refused + summary["rejected"], max(largest, times)
            rows.append([each[key] for each in (summary, free) for key in ("accuracy", "accuracy_min")])
        bound, bound_min, null, null_min = 100 * np.mean(rows, axis=0)
        print(
            f"| {name} | {refused} | {largest:.1f} | {bound:.1f} %, {bound_min:.1f} % "
            f"| {null:.1f} %, {null_min:.1f} % |",
            flush=True,
        )


def _print_agreement(seeds: Sequence[int]) -> None:
    """Twenty clients with so many classes each, FedAvg: what the rule refuses, beside the plain mean."""
    print("| classes each | refused | agreement | mean |", flush=True)
    print("|---:|---:|---:|---:|", flush=True)
    for number in (1, 2, 5):
        refused, accuracies = 0, []
        for seed in seeds:
            summaries = {}
            for rule in ("agreement", "mean"):
                situation = _labels(number, method="fedavg", server={"aggregation": rule})
                with tempfile.TemporaryDirectory() as scratch:
                    summaries[rule], _ = run_situation(situation, Path(scratch) / rule, seed=seed)
            refused += summaries["agreement"]["rejected"]
            accuracies.append([summary["accuracy"] for summary in summaries.values()])
        agreement, mean = 100 * np.mean(accuracies, axis=0)
        print(f"| {number} | {refused} | {agreement:.1f} % | {mean:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
