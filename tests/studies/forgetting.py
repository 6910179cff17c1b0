"""What lost control variates cost: `python -m tests.studies.forgetting DATA [SEED ...]`, DATA digits or synthetic.

Ten clients, Dirichlet 0.5; after round 8 of 20 three of them lose all they keep, as devices whose disks are replaced.
Told is how far c is from the weighted sum of the c_i, as a share of c's length, and the mean accuracy (on validation
splits) over the rounds after the loss: where nothing is lost, where c and all c_i begin anew, and where what c holds of
the lost ones only fades, with the default `control.half_life` and without one.
"""

import statistics
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

from spatl.config.loading import parse_config
from spatl.rounds import server
from spatl.rounds.opened_control import without_lost_control
from spatl.rounds.server_state import ServerState
from spatl.runs.records import read_lines
from tests.support.faults import SETTINGS
from tests.support.federations import COMPRESSED
from tests.support.forgetting import distances_with, loss_of

LOST, LAST, ROUNDS = (0, 3, 6), 8, 20
WAYS = ("nothing lost", "begins anew", "fades")


def distances(data: str, way: str, half_life: float | None, *, seed: int, directory: Path) -> tuple[list[float], float]:
    """How far c is from the sum, by round, and the mean accuracy on arrival from two rounds after the loss on."""
    config = parse_config(
        {
            **SETTINGS[data], "seed": seed, "rounds": ROUNDS, "method": "spatl",
            "partition": {"name": "dirichlet", "num_clients": 10, "alpha": 0.5},
            "selection": {"selector": "update", "keep_ratio": 0.7}, "control": {"half_life": half_life},
            "wire": COMPRESSED, "report": {"split": "validation"},
        }
    )  # fmt: skip

    def fades(state: ServerState, server_round: int) -> ServerState:
        return state

    harms = {} if way == "nothing lost" else {LAST: [loss_of(*LOST)]}
    with patch.object(server, "without_lost_control", fades if way == "fades" else without_lost_control):
        found = distances_with(config, directory, harms)
    rows = read_lines(directory / "history.jsonl")
    return found, statistics.mean(row["accuracy"] for row in rows[LAST + 2 :])


def main() -> None:
    """Print a line per way and half-life: the distances, and the accuracies of all seeds."""
    data, seeds = sys.argv[1], [int(text) for text in sys.argv[2:]] or [1, 2, 3]
    for half_life in (2.0, None):
        for way in WAYS:
            accuracies, of_all = [], []
            for seed in seeds:
                with tempfile.TemporaryDirectory() as scratch:
                    found, accuracy = distances(data, way, half_life, seed=seed, directory=Path(scratch))
                accuracies.append(accuracy)
                of_all.append(found)
            told = {n: max(found[n - 1] for found in of_all) for n in (LAST, LAST + 1, LAST + 2, LAST + 4, ROUNDS)}
            print(
                f"{data}, half-life {half_life}, {way}: "
                + ", ".join(f"round {n} {distance:.1e}" for n, distance in told.items())
                + "; accuracy " + ", ".join(f"{100 * each:.1f}" for each in accuracies) + " %",
                flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
