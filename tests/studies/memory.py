"""The memory of a federation of many clients, round by round, or of a large network, by parameter.

`python -m tests.studies.memory [CLIENTS] [ROUNDS]` prints the resident memory of the process that runs server and
clients. `python -m tests.studies.memory large [METHOD] [HIDDEN]` prints what two clients and their server take per
parameter of a large network, one with so many units between 3,136 inputs and its classes: at most at one time, in the
checkpoint, and in the state of a client.
"""

import gc
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from server.app import serve
from server.grids import InProcessGrid
from server.recorder import Recorder
from spatl.config.loading import parse_config
from spatl.rounds.blueprint import cached_blueprint

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


def _field(name: str) -> int:
    """Bytes of a line of `/proc/self/status` (Linux)."""
    (line,) = (line for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if name in line)
    return 1024 * int(line.split()[1])


def bytes_per_parameter(method: str, hidden: int, directory: Path) -> dict[str, float]:
    """Run a large network for three rounds after a small one, which takes what every run takes."""
    for units in (16, hidden):
        config = parse_config(
            {
                "rounds": 3,
                "method": method,
                "data": {"name": "synthetic", "options": {"num_examples": 64, "image_size": 28}},
                "partition": {"name": "iid", "num_clients": 2},
                "model": {"name": "cnn", "options": {"hidden": units}},
                "training": {"local_steps": 1, "batch_size": 8, "learning_rate": 0.01, "device": "cpu"},
            }
        )
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        before, run = resident_bytes(), directory / str(units)
        run_config = {"config": config.to_json(), "out": str(run)}
        serve(InProcessGrid(client_app, num_clients=2, run_config=run_config), config, run)
    number = sum(parameter.numel() for parameter in cached_blueprint(config.to_json()).model.parameters())
    states = sum(file.stat().st_size for file in (run / "clients").rglob("*") if file.is_file()) / 2
    sizes = {
        "peak": _field("VmHWM") - before,
        "checkpoint": (run / "server.checkpoint").stat().st_size,
        "state": states,
    }
    return {"parameters": number, **{name: size / number for name, size in sizes.items()}}


def main() -> None:
    """Print the table."""
    if sys.argv[1:2] == ["large"]:
        method, hidden = (*sys.argv[2:], *("spatl", "3200")[len(sys.argv) - 2 :])
        with tempfile.TemporaryDirectory() as scratch:
            sizes = bytes_per_parameter(method, int(hidden), Path(scratch))
        print(f"{method}, {sizes.pop('parameters'):,} parameters, bytes of each:")
        print("  ".join(f"{name} {size:.1f}" for name, size in sizes.items()))
        return
    num_clients, rounds = (int(text) for text in (*sys.argv[1:], *("1000", "50")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as scratch:
        sizes = memory_by_round(
            num_clients, rounds, Path(scratch) / "run",
            lambda number, size: print(f"round {number}: {size / 2**20:.1f} MiB", flush=True),
        )  # fmt: skip
    print(f"from round 5 to round {rounds - 1}: {(sizes[rounds - 1] - sizes[5]) / 2**20:+.1f} MiB")


if __name__ == "__main__":
    main()
