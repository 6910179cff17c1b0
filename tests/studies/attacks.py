"""What bad clients do to a federation, with each rule of aggregation.

`python -m tests.studies.attacks [SEED ...]` prints the final accuracy of the other clients, ten on the digits, one of
which sends its update times a factor: the mean over the seeds, the change from nobody doing so, and the worst change of
a seed. Accuracies are on validation splits.
"""

import argparse
import math
import struct
import tempfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from server.replies import blob_content
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config
from spatl.errors import DivergedError
from spatl.json_files import read_json
from tests.support.federations import blob_of, run_tiny, scaled, tampering

BAD = (3,)
FACTORS = {"none": 1.0, "sign flipped": -1.0, "times 1000": 1000.0, "times -5": -5.0}
RULES = {
    "mean": {},
    "mean, no bound": {"norm_bound": None},
    "clip 1.5": {"clip": 1.5},
    "trimmed-mean": {"aggregation": "trimmed-mean"},
    "trimmed-mean 0.1": {"aggregation": "trimmed-mean", "trim_fraction": 0.1},
    "median": {"aggregation": "median"},
    "agreement": {"aggregation": "agreement"},
    "agreement and clip 1.5": {"aggregation": "agreement", "clip": 1.5},
}


SMALL = {"name": "cnn", "options": {"channels": [8, 16], "hidden": 32}}
_IMAGES = {"num_examples": 3000, "difficulty": 0.3, "image_size": 16}


def config_of(
    rule: dict[str, object], *, seed: int = 1, rounds: int = 15, method: str = "spatl", alpha: float = 0.5,
    images: bool = False,
) -> ExperimentConfig:  # fmt: skip
    """Ten clients, Dirichlet 0.5 if nothing else is said, on the digits or with a ResNet-8 on synthetic images."""
    network = {"name": "resnet8", "options": {"width": 0.5}} if images else SMALL
    return parse_config(
        {
            "seed": seed,
            "rounds": rounds,
            "method": method,
            "partition": {"num_clients": 10, "alpha": alpha},
            "data": {"name": "synthetic", "options": _IMAGES} if images else {"name": "digits"},
            "model": network,
            "training": {
                "local_epochs": 2,
                "batch_size": 16,
                "learning_rate": 0.16 if images else 0.02,
                "momentum": 0.9,
                "device": "cpu",
            },
            "selection": {"selector": "update", "keep_ratio": 0.8},
            "wire": {"uplink": "float32", "downlink": "adaptive"},
            "server": rule,
            "report": {"split": "validation"},
        }
    )


def accuracy_under(
    factor: float, config: ExperimentConfig, directory: Path, *, from_round: int = 1, bad: Collection[int] = BAD
) -> float:
    """The final accuracy, in the mean over all clients but the bad ones; NaN if the run diverges."""

    def attack(client: int, content: RecordDict) -> RecordDict:
        (server_round,) = struct.unpack_from("<I", blob_of(content), 8)
        bad_now = client in bad and factor != 1.0 and server_round >= from_round
        return blob_content(scaled(blob_of(content), factor)) if bad_now else content

    try:
        run_tiny(config, directory, app=tampering(attack))
    except DivergedError:
        return math.nan
    clients = read_json(directory / "summary.json")["clients"]
    return float(np.mean([accuracy for client, accuracy in clients.items() if int(client) not in bad]))


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.attacks")
    parser.add_argument("seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--rules", default=",".join(RULES), help="rows, separated by commas")
    parser.add_argument(
        "--factors", default=",".join(FACTORS), help="columns; the first is what others are compared to"
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--images", action="store_true", help="a ResNet-8 on synthetic images instead of the digits")
    parser.add_argument("--alpha", type=float, default=0.5, help="of the Dirichlet partition")
    parser.add_argument("--fraction", type=float, default=1.0, help="of the clients in a round")
    parser.add_argument("--num-bad", type=int, default=1)
    parser.add_argument("--from-round", type=int, default=1, help="the first round in which bad clients are bad")
    options = parser.parse_args()
    bad = range(BAD[0], BAD[0] + options.num_bad)
    names = options.factors.split(",")
    print("| rule | " + " | ".join(names) + " |", flush=True)
    print("|---|" + "---:|" * len(names), flush=True)
    for name in options.rules.split(","):
        rule = {**RULES[name], "fraction_train": options.fraction}
        cells, untouched = [], np.zeros(0)
        for factor in (FACTORS[each] for each in names):
            accuracies = []
            for seed in options.seeds:
                config = config_of(rule, seed=seed, rounds=options.rounds, alpha=options.alpha, images=options.images)
                with tempfile.TemporaryDirectory() as scratch:
                    under = accuracy_under(
                        factor, config, Path(scratch) / "run", from_round=options.from_round, bad=bad
                    )
                accuracies.append(100 * under)
            values = np.array(accuracies)
            untouched = untouched if len(untouched) else values
            cells.append(_cell(values, values - untouched if factor != 1.0 else None))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def _cell(accuracies: NDArray[np.float64], changes: NDArray[np.float64] | None) -> str:
    diverged = int(np.isnan(accuracies).sum())
    if diverged:
        return f"{diverged} diverged"
    mean = f"{accuracies.mean():.1f} %"
    return mean if changes is None else f"{mean} ({changes.mean():+.1f}, worst {changes.min():+.1f})"


if __name__ == "__main__":
    main()
