"""What a message costs a device before its first batch, each starting a process: `spatl show cold-start`.

Every figure is the least of several processes, which take turns, so that what else the machine does concerns all alike.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

from flwr.app import Context, RecordDict

from clients.app import workplace_of
from clients.round import Workplace
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
    "ready to train": "import clients.cold_start; clients.cold_start.ready()",
    "a whole message": "import clients.cold_start; clients.cold_start.handle()",
    "ready, in Flower's process": "import clients.task, clients.cold_start; clients.cold_start.ready()",
    "between messages: SuperNode": "import flwr.supernode.cli.flower_supernode, flwr.supernode.main",
    "between messages: SuperExec": "import flwr.supercore.cli.flower_superexec",
}
_PROGRAM = """
import time
wall, cpu = time.perf_counter(), time.process_time()
{step}
took = [time.perf_counter() - wall, time.process_time() - cpu]
import json
from clients.memory import peak_megabytes
print(json.dumps([*took, peak_megabytes()]))
"""
_CONFIG = {
    "rounds": 1,
    "data": {"name": "synthetic", "options": {"num_examples": 400, "image_size": 8}},
    "partition": {"num_clients": 4},
    "training": {"local_steps": 1, "device": "cpu"},
    "selection": {"selector": "agent"},
}


@dataclass(frozen=True)
class Cost:
    """What a process needs: wall-clock seconds, CPU seconds, and memory at its peak (resident, MB)."""

    seconds: float
    cpu_seconds: float
    peak_megabytes: float


def ready() -> Workplace:
    """Do what each message needs before its first batch: read the run, build and trace the model, load own examples."""
    context = Context(
        run_id=1,
        node_id=2,
        node_config={"partition-id": 0, "num-partitions": 4},
        state=RecordDict(),
        run_config={"config": parse_config(_CONFIG).to_json()},
    )
    workplace = workplace_of(context)
    workplace.num_examples(0)
    return workplace


def handle() -> None:
    """Do a round's work on very few images: one step, the shipped policy selects, the update is packed, the state kept.

    Flower's transport is left out.
    """
    workplace = ready()
    received = Model(1, 0, workplace.blueprint.initial_encoder(), None, None)
    with tempfile.TemporaryDirectory(prefix="spatl-") as scratch:
        store = DirectoryStore(Path(scratch) / "state")
        with store.locked():
            _, state = workplace.train(0, received, store.load(before=1), acknowledged_round=0)
            store.save(state)


def measure(repeats: int = _REPEATS) -> dict[str, Cost]:
    """Return what each step costs in a process of its own; the first of each, which compiles the sources, is not kept.

    Raises:
        SpatlError: One of them fails.
    """
    found: dict[str, list[Cost]] = {name: [] for name in _STEPS}
    with tempfile.TemporaryDirectory(prefix="spatl-") as home:
        settings = environment(Path(home))
        settings.pop("PYTHONDONTWRITEBYTECODE", None)
        for _ in range(1 + repeats):
            for name, step in _STEPS.items():
                done = subprocess.run(
                    [sys.executable, "-c", _PROGRAM.format(step=step)], capture_output=True, text=True,
                    timeout=_TIMEOUT_SECONDS, env=settings, check=False,
                )  # fmt: skip
                if done.returncode:
                    raise SpatlError(f"{name}: {done.stderr.strip().rpartition(chr(10))[2]}")
                found[name].append(Cost(*json.loads(done.stdout.splitlines()[-1])))
    return {name: Cost(*map(min, zip(*map(astuple, each[1:]), strict=True))) for name, each in found.items()}


def rows() -> Iterable[tuple[str, ...]]:
    """The rows of `spatl show cold-start`."""
    times = measure()
    torch = times["import torch"]
    for name, cost in times.items():
        seconds, cpu_seconds = cost.seconds - torch.seconds, cost.cpu_seconds - torch.cpu_seconds
        yield (name, f"{cost.seconds:.2f}", f"{seconds:+.2f}", f"{cost.cpu_seconds:.2f}", f"{cpu_seconds:+.2f}",
               f"{cost.peak_megabytes:.0f}")  # fmt: skip
