"""What lost replies cost: `python -m tests.studies.losses [SEED ...]` prints the final accuracy with and without them.

Thirty rounds on the digits, ten clients, Dirichlet 0.5; each reply is lost with probability 0.3. Accuracies are on
validation splits.
"""

import random
import sys
import tempfile
from pathlib import Path

from flwr.app import Message

from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config
from spatl.json_files import read_json
from tests.studies.attacks.situations import SMALL
from tests.support.federations import COMPRESSED, run_tiny


def config_of(*, seed: int, rounds: int) -> ExperimentConfig:
    """Ten clients on the digits, Dirichlet 0.5."""
    return parse_config(
        {
            "seed": seed,
            "rounds": rounds,
            "partition": {"num_clients": 10, "alpha": 0.5},
            "model": SMALL,
            "training": {
                "local_epochs": 2, "batch_size": 16, "learning_rate": 0.02, "momentum": 0.9, "device": "cpu",
            },
            "selection": {"selector": "update", "keep_ratio": 0.8},
            "wire": COMPRESSED,
            "report": {"split": "validation"},
        }
    )  # fmt: skip


def accuracy_with(share: float, *, seed: int, rounds: int, directory: Path) -> tuple[float, int]:
    """The final accuracy over all clients, and how many replies were lost."""
    config = config_of(seed=seed, rounds=rounds)
    draw = random.Random(seed)

    def loses(client: int, message: Message) -> bool:
        return message.metadata.message_type == "train" and draw.random() < share

    run_tiny(config, directory, loses=loses)
    summary = read_json(directory / "summary.json")
    return summary["accuracy"], summary["missing"]


def main() -> None:
    """Print a line per seed."""
    for seed in [int(text) for text in sys.argv[1:]] or [1, 2, 3]:
        with tempfile.TemporaryDirectory() as scratch:
            whole, _ = accuracy_with(0.0, seed=seed, rounds=30, directory=Path(scratch) / "whole")
            lossy, missing = accuracy_with(0.3, seed=seed, rounds=30, directory=Path(scratch) / "lossy")
        print(f"seed {seed}: {100 * whole:.1f} % undisturbed, {100 * lossy:.1f} % without {missing} of 300 replies")


if __name__ == "__main__":
    main()
