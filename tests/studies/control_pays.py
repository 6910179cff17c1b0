"""Where control variates pay: the same federation with and without them, by partition, network and predictor.

`python -m tests.studies.control_pays [SEED ...]` trains thirty clients on the digits, three of them in a round, ten
local epochs each, where labels differ: Dirichlet 0.1, and one or two classes a client. Networks are a CNN without
normalisation and a ResNet-8 with BatchNorm, predictors the shared one and the calibrated one; codecs and momentum are
the same. Each of the two takes the better of the same rates, by the first seed's validation accuracy after the last
round. Printed: that accuracy over all clients, in the mean of the seeds, and the difference within each seed. No test
split is read.
"""

import argparse
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


def accuracy(seed: int, rate: float, partition: str, model: str, predictor: str, *, controls: bool) -> float:
    """Mean validation accuracy over all clients after the last round; 0 of a run that diverges."""
    without = "fedavg-calibrated" if predictor == "calibrated" else "fedavg"
    mode = {"predictor": {"mode": predictor}} if controls or predictor == "calibrated" else {}
    config = parse_config(
        {
            "seed": seed, "rounds": ROUNDS, "method": "spatl-no-selection" if controls else without, **mode,
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
    options = parser.parse_args(arguments)
    seeds = options.seeds
    print("| labels | network | predictor | without | with | with less without, by seed | rates |")
    print("|---|---|---|---:|---:|---:|---:|")
    for partition in options.labels:
        for model in options.networks:
            for predictor in PREDICTORS:
                cell = (partition, model, predictor)
                found, rates = {}, {}
                for controls in (False, True):
                    first = {rate: accuracy(seeds[0], rate, *cell, controls=controls) for rate in RATES}
                    rate = rates[controls] = max(RATES, key=first.__getitem__)
                    others = [accuracy(seed, rate, *cell, controls=controls) for seed in seeds[1:]]
                    found[controls] = [100 * each for each in (first[rate], *others)]
                gains = [a - b for a, b in zip(found[True], found[False], strict=True)]
                means = [f"{statistics.fmean(found[controls]):.1f}" for controls in (False, True)]
                told = ", ".join(f"{gain:+.1f}" for gain in gains)
                row = [*cell, *means, told, f"{rates[False]:g}, {rates[True]:g}"]
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
