"""Cost of a message on a device before its first batch, each starting a process: `spatl show cold-start`.

Every figure is the least of several processes, which take turns, so that what else the machine does concerns all alike.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

from flwr.app import Context, RecordDict

from clients.device import handover
from clients.device.peak_memory import peak_megabytes
from clients.node import workplace_of
from clients.store import DirectoryStore
from spatl.config.loading import parse_config
from spatl.deployment.processes import environment
from spatl.errors import SpatlError
from spatl.rounds.client import train_round
from spatl.rounds.client_state import ClientState
from spatl.rounds.workplace import Workplace
from spatl.wire.download import Model

_REPEATS = 5
_TIMEOUT_SECONDS = 300
_STEPS = {
    "import torch": "import torch",
    "import clients.app": "import clients.app",
    "ready to train": "from clients.device import cold_start; cold_start.ready()",
    "a whole message": "from clients.device import cold_start; cold_start.handle()",
    "ready, in Flower's process": "from clients.device import cold_start, message_process; cold_start.ready()",
    "between messages: SuperNode": "import flwr.supernode.cli.flower_supernode, flwr.supernode.main",
    "between messages: SuperExec": "import flwr.supercore.cli.flower_superexec",
    "between messages: preloaded": "import clients.device.preloaded",
}
_IN_FORK = "a whole message, in a fork"
_FORKING_PROGRAM = """
import sys
from pathlib import Path
from clients.device import cold_start, forking, preloaded
forking.serve(Path(sys.argv[1]), cold_start.handle_in_fork, parent=int(sys.argv[2]))
"""
_PROGRAM = """
import time
wall, cpu = time.perf_counter(), time.process_time()
{step}
took = [time.perf_counter() - wall, time.process_time() - cpu]
import json
from clients.device.peak_memory import peak_megabytes
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
    """Cost of a process: wall-clock seconds, CPU seconds, and memory at its peak (resident, MB)."""

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
            state = store.load(before=1) or ClientState.initial(workplace.blueprint.layout)
            _, state = train_round(workplace, 0, received, state)
            store.save(state)


def handle_in_fork() -> None:
    """Do a round's work in a process that was forked for it, and print its CPU seconds and its memory at the peak."""
    handle()
    print(json.dumps([time.process_time(), peak_megabytes()]))


def measure(repeats: int = _REPEATS) -> dict[str, Cost]:
    """Return the cost of each step in a process of its own, without the first of each, which compiles the sources.

    Raises:
        SpatlError: One of them fails.
    """
    found: dict[str, list[Cost]] = {name: [] for name in _STEPS}
    with tempfile.TemporaryDirectory(prefix="spatl-") as home:
        settings = environment(Path(home))
        settings.pop("PYTHONDONTWRITEBYTECODE", None)
        for _ in range(1 + repeats):
            for name, step in _STEPS.items():
                command = [sys.executable, "-c", _PROGRAM.format(step=step)]
                found[name].append(Cost(*_printed_by(command, settings)))
        found[_IN_FORK] = _costs_in_forks(1 + repeats, Path(home), settings)
    return {name: Cost(*map(min, zip(*map(astuple, each[1:]), strict=True))) for name, each in found.items()}


def _costs_in_forks(repeats: int, directory: Path, settings: Mapping[str, str]) -> list[Cost]:
    """Return the costs of messages in forks, from the start of the process that Flower would start to its end."""
    path = directory / "preloaded.sock"
    process = subprocess.Popen([sys.executable, "-c", _FORKING_PROGRAM, str(path), str(os.getpid())], env=settings)
    try:
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while not path.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        costs = []
        for _ in range(repeats):
            began = time.perf_counter()
            cpu_seconds, peak = _printed_by(handover.command(path), settings)
            costs.append(Cost(time.perf_counter() - began, cpu_seconds, peak))
        return costs
    finally:
        process.kill()
        process.wait()


def _printed_by(command: list[str], settings: Mapping[str, str]) -> list[float]:
    """Return the numbers in the last line that a program prints.

    Raises:
        SpatlError: It fails.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, env=settings, check=False)
    if done.returncode:
        raise SpatlError(f"{' '.join(command)}: {done.stderr.strip().rpartition(chr(10))[2]}")
    numbers: list[float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def rows() -> Iterable[tuple[str, ...]]:
    """Yield the rows of `spatl show cold-start`."""
    times = measure()
    torch = times["import torch"]
    for name, cost in times.items():
        seconds, cpu_seconds = cost.seconds - torch.seconds, cost.cpu_seconds - torch.cpu_seconds
        yield (name, f"{cost.seconds:.2f}", f"{seconds:+.2f}", f"{cost.cpu_seconds:.2f}", f"{cpu_seconds:+.2f}",
               f"{cost.peak_megabytes:.0f}")  # fmt: skip
