"""What one bad client does to a federation, with each rule of aggregation.

`python -m tests.attacks [SEED ...] [--rounds N]` prints the final accuracy of the other clients on the digits, ten
clients, one of which sends its update times a factor. Accuracies are on validation splits.
"""

import argparse
import math
import struct
import tempfile
from pathlib import Path

import numpy as np
from flwr.app import RecordDict

from server.strategy import blob_content
from spatl.config import ExperimentConfig, parse_config
from spatl.errors import DivergedError
from spatl.history import read_json
from spatl.protocol import section_bytes
from tests.federations import blob_of, run_tiny, tampering

BAD = 3
FACTORS = {"none": 1.0, "sign flipped": -1.0, "times 1000": 1000.0, "times -5, below the bound": -5.0}
RULES = {
    "mean": {},
    "mean, no bound": {"norm_bound": None},
    "clip 1.5": {"clip": 1.5},
    "trimmed-mean": {"aggregation": "trimmed-mean"},
    "trimmed-mean 0.1": {"aggregation": "trimmed-mean", "trim_fraction": 0.1},
    "median": {"aggregation": "median"},
}


def config_of(rule: dict[str, object], *, seed: int = 1, rounds: int = 15, method: str = "spatl") -> ExperimentConfig:
    """Ten clients on the digits, Dirichlet 0.5."""
    return parse_config(
        {
            "seed": seed,
            "rounds": rounds,
            "method": method,
            "partition": {"num_clients": 10, "alpha": 0.5},
            "model": {"name": "cnn", "options": {"channels": [8, 16], "hidden": 32}},
            "training": {"local_epochs": 2, "batch_size": 16, "learning_rate": 0.02, "momentum": 0.9, "device": "cpu"},
            "selection": {"selector": "update", "keep_ratio": 0.8},
            "wire": {"uplink": "float32", "downlink": "adaptive"},
            "server": rule,
            "report": {"split": "validation"},
        }
    )


def scaled(factor: float, content: RecordDict) -> RecordDict:
    """An update times a factor: its values are the last section, in float32."""
    blob = blob_of(content)
    start = len(blob) - section_bytes(blob)["values"]
    values = np.frombuffer(blob[start:], "<f4") * np.float32(factor)
    return blob_content(blob[:start] + values.tobytes())


def accuracy_under(factor: float, config: ExperimentConfig, directory: Path, *, from_round: int = 1) -> float:
    """The final accuracy, in the mean over all clients but the bad one; NaN if the run diverges."""

    def attack(client: int, content: RecordDict) -> RecordDict:
        (server_round,) = struct.unpack_from("<I", blob_of(content), 8)
        return scaled(factor, content) if client == BAD and factor != 1.0 and server_round >= from_round else content

    try:
        run_tiny(config, directory, app=tampering(attack))
    except DivergedError:
        return math.nan
    clients = read_json(directory / "summary.json")["clients"]
    return float(np.mean([accuracy for client, accuracy in clients.items() if int(client) != BAD]))


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser()
    parser.add_argument("seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print("| rule | " + " | ".join(FACTORS) + " |", flush=True)
    print("|---|" + "---:|" * len(FACTORS))
    for name, rule in RULES.items():
        cells = []
        for factor in FACTORS.values():
            with tempfile.TemporaryDirectory() as scratch:
                values = [
                    accuracy_under(factor, config_of(rule, seed=seed, rounds=options.rounds), Path(scratch) / str(seed))
                    for seed in options.seeds
                ]
            diverged = sum(map(math.isnan, values))
            cells.append(f"{diverged} diverged" if diverged else f"{100 * np.mean(values):.1f} %")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
