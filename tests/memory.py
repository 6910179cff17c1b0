"""The memory of a federation of many clients, round by round.

`python -m tests.memory [CLIENTS] [ROUNDS]` prints the resident memory of the process that runs server and clients.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from server.app import serve
from server.grids import InProcessGrid
from server.reporting import Recorder
from spatl.config import parse_config

from clients.app import app as client_app  # isort: skip


def resident_bytes() -> int:
    """What this process holds in memory now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def memory_by_round(
    num_clients: int, rounds: int, directory: Path, on_round: Callable[[int, int], None] = lambda number, size: None
) -> dict[int, int]:
    """Run a federation in which a tenth of the clients trains in a round, and return the bytes after each."""
    config = parse_config(
        {
            "rounds": rounds,
            "method": "spatl",
            "data": {"name": "synthetic", "options": {"num_examples": 12 * num_clients, "image_size": 8}},
            "partition": {"name": "iid", "num_clients": num_clients},
            "model": {"name": "cnn", "options": {"channels": [16, 32], "hidden": 64}},
            "training": {"local_steps": 1, "batch_size": 8, "device": "cpu"},
            "selection": {"selector": "update", "keep_ratio": 0.5},
            "server": {"fraction_train": 0.1},
        }
    )
    sizes: dict[int, int] = {}
    truly = Recorder.finish_round

    def finish_round(self: Recorder, **arguments: str) -> object:
        row = truly(self, **arguments)
        sizes[row.round] = resident_bytes()
        on_round(row.round, sizes[row.round])
        return row

    Recorder.finish_round = finish_round  # type: ignore[method-assign, assignment]
    try:
        run_config = {"config": config.to_json(), "out": str(directory)}
        serve(InProcessGrid(client_app, num_clients=num_clients, run_config=run_config), config, directory)
    finally:
        Recorder.finish_round = truly  # type: ignore[method-assign]
    return sizes


def main() -> None:
    """Print the table."""
    num_clients, rounds = (int(text) for text in (*sys.argv[1:], *("1000", "50")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as scratch:
        sizes = memory_by_round(
            num_clients, rounds, Path(scratch) / "run",
            lambda number, size: print(f"round {number}: {size / 2**20:.1f} MiB", flush=True),
        )  # fmt: skip
    print(f"from round 5 to round {rounds - 1}: {(sizes[rounds - 1] - sizes[5]) / 2**20:+.1f} MiB")


if __name__ == "__main__":
    main()
