"""Where control variates pay: the same federation with and without them, by partition, network and predictor.

`python -m tests.studies.control_pays [SEED ...]` trains thirty clients on the digits, three of them in a round, ten
local epochs each, where labels differ: Dirichlet 0.1, and one or two classes a client. Networks are a CNN without
normalisation and a ResNet-8 with BatchNorm, predictors the shared one and the calibrated one; codecs and momentum are
the same. c is sent, since clients that take part now and then cannot derive it. Each takes the better of the same
rates, by the first seed's validation accuracy after the last round. Printed: that accuracy over all clients without
control variates, in the mean of the seeds, and what it is more with them, in the mean and by seed. No test split is
read.
"""

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spatl.config.loading import parse_config
from spatl.errors import DivergedError
from spatl.runner import run

ROUNDS = 40
RATES = (0.005, 0.02)
PARTITIONS: Mapping[str, Mapping[str, Any]] = {
    "Dirichlet 0.1": {"name": "dirichlet", "alpha": 0.1, "min_examples": 10},
    "1 class each": {"name": "labels", "labels_per_client": 1},
    "2 classes each": {"name": "labels", "labels_per_client": 2},
}
MODELS: Mapping[str, Mapping[str, Any]] = {
    "CNN": {"name": "cnn", "options": {"channels": [16, 32], "hidden": 64}},
    "ResNet-8, BatchNorm": {"name": "resnet8", "options": {"width": 0.5}},
}
PREDICTORS = ("shared", "calibrated")
CONTROLS: Mapping[str, Mapping[str, Any] | None] = {
    "without": None,
    "fading": {"downlink": "sent"},
    "kept": {"downlink": "sent", "half_life": None},
}
"""How gradients are corrected: not at all, by c and c_i that fade by half in two rounds, and by such that never do."""


def accuracy(seed: int, rate: float, partition: str, model: str, predictor: str, *, control: str) -> float:
    """Mean validation accuracy over all clients after the last round; 0 of a run that diverges."""
    without = "fedavg-calibrated" if predictor == "calibrated" else "fedavg"
    settings = CONTROLS[control]
    more: dict[str, Any] = {} if settings is None else {"control": dict(settings)}
    if settings is not None or predictor == "calibrated":
        more["predictor"] = {"mode": predictor}
    config = parse_config(
        {
            "seed": seed, "rounds": ROUNDS, "method": without if settings is None else "spatl-no-selection", **more,
            "data": {"name": "digits"}, "partition": {"num_clients": 30, **PARTITIONS[partition]},
            "model": dict(MODELS[model]), "server": {"fraction_train": 0.1},
            "wire": {"uplink": "adaptive", "downlink": "adaptive"},
            "training": {"learning_rate": rate, "momentum": 0.9, "local_epochs": 10, "batch_size": 16, "threads": 1},
            "report": {"split": "validation", "compare_alone": False},
        }
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        try:
            summary = run(config, Path(scratch) / "run", pictures=False, progress=False, warn=False).summary
        except DivergedError:
            return 0.0
    found: float = summary["accuracy"]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--networks", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--labels", nargs="+", choices=list(PARTITIONS), default=list(PARTITIONS))
    parser.add_argument("--predictors", nargs="+", choices=PREDICTORS, default=list(PREDICTORS))
    options = parser.parse_args(arguments)
    seeds = options.seeds
    print("| labels | network | predictor | without | fading, less without | kept, less without | rates |")
    print("|---|---|---|---:|---|---|---|")
    for cell in itertools.product(options.labels, options.networks, options.predictors):
        found, rates = {}, {}
        for control in CONTROLS:
            first = {rate: accuracy(seeds[0], rate, *cell, control=control) for rate in RATES}
            rate = rates[control] = max(RATES, key=first.__getitem__)
            others = [accuracy(seed, rate, *cell, control=control) for seed in seeds[1:]]
            found[control] = [100 * each for each in (first[rate], *others)]
        row = [*cell, f"{statistics.fmean(found['without']):.1f}"]
        for control in ("fading", "kept"):
            gains = [a - b for a, b in zip(found[control], found["without"], strict=True)]
            row.append(f"{statistics.fmean(gains):+.1f} ({', '.join(f'{gain:+.1f}' for gain in gains)})")
        print(f"| {' | '.join([*row, ', '.join(f'{rate:g}' for rate in rates.values())])} |", flush=True)


if __name__ == "__main__":
    main()
