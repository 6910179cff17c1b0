"""What a message costs a device before its first batch, each starting a process: `spatl show cold-start`.

Every figure is the least of several processes, which take turns, so that what else the machine does concerns all alike.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from flwr.app import Context, RecordDict

from clients.app import workplace_of
from clients.state import DirectoryStore
from spatl.config import parse_config
from spatl.errors import SpatlError
from spatl.processes import environment
from spatl.protocol import Model

_REPEATS = 5
_TIMEOUT_SECONDS = 300
_STEPS = {
    "import torch": "import torch",
    "import clients.app": "import clients.app",
    "a message": "import clients.cold_start; clients.cold_start.handle()",
    "Flower's process, a message": "import clients.task, clients.cold_start; clients.cold_start.handle()",
}
_PROGRAM = """
import time
wall, cpu = time.perf_counter(), time.process_time()
{step}
import json
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
"""
_CONFIG = {
    "rounds": 1,
    "data": {"name": "synthetic", "options": {"num_examples": 400, "image_size": 8}},
    "partition": {"num_clients": 4},
    "training": {"local_steps": 1, "device": "cpu"},
    "selection": {"selector": "agent"},
}


def handle() -> None:
    """Do what a device does with the message of a round, on very few images: one step, and the shipped policy selects.

    Flower's transport is left out.
    """
    context = Context(
        run_id=1,
        node_id=2,
        node_config={"partition-id": 0, "num-partitions": 4},
        state=RecordDict(),
        run_config={"config": parse_config(_CONFIG).to_json()},
    )
    workplace = workplace_of(context)
    received = Model(1, 0, workplace.blueprint.initial_encoder(), None, None)
    with tempfile.TemporaryDirectory(prefix="spatl-") as scratch:
        store = DirectoryStore(Path(scratch) / "state")
        with store.locked():
            _, state = workplace.train(0, received, store.load(before=1), acknowledged_round=0)
            store.save(state)


def measure(repeats: int = _REPEATS) -> dict[str, tuple[float, float]]:
    """Return wall-clock and CPU seconds of each step, in a process of its own.

    Raises:
        SpatlError: One of them fails.
    """
    found: dict[str, list[list[float]]] = {name: [] for name in _STEPS}
    with tempfile.TemporaryDirectory(prefix="spatl-") as home:
        for _ in range(repeats):
            for name, step in _STEPS.items():
                done = subprocess.run(
                    [sys.executable, "-c", _PROGRAM.format(step=step)], capture_output=True, text=True,
                    timeout=_TIMEOUT_SECONDS, env=environment(Path(home)), check=False,
                )  # fmt: skip
                if done.returncode:
                    raise SpatlError(f"{name}: {done.stderr.strip().rpartition(chr(10))[2]}")
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
    return {name: (min(wall for wall, _ in each), min(cpu for _, cpu in each)) for name, each in found.items()}


def rows() -> Iterable[tuple[str, ...]]:
    """The rows of `spatl show cold-start`."""
    times = measure()
    base_wall, base_cpu = times["import torch"]
    for name, (wall, cpu) in times.items():
        yield name, f"{wall:.2f}", f"{cpu:.2f}", f"{wall - base_wall:+.2f}", f"{cpu - base_cpu:+.2f}"
