"""Measurement of a federation by its number of clients, each in a process of its own (`python -m spatl.perf.scale`)."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from spatl.json_files import to_json
from spatl.perf.cases import many_clients
from spatl.perf.measure import peak_bytes
from spatl.perf.own_process import found_by, whole_number
from spatl.perf.parts import PartsClock
from spatl.runner import run

ROUNDS: Final = 5
_MARKS: Final = {
    "start": ("server.recorder:Recorder.start_clock",),
    "round": ("server.recorder:Recorder.finish_round",),
}


class _Marks(PartsClock):
    """Clock that notes when functions were called, in place of how long they take."""

    def __init__(self) -> None:
        super().__init__()
        self.times: dict[str, list[float]] = {name: [] for name in _MARKS}

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **named: Any) -> Any:
            self.times[part].append(self._now())
            return function(*arguments, **named)

        return noted


def measure_clients(num_clients: int) -> dict[str, Any]:
    """Measure a federation of so many clients in another process.

    Returns:
        CPU seconds of the start and of the end (evaluation of all clients, and what is written), the median over
        the rounds between; files and bytes that the run has left, and the most memory, with that of the data.

    Raises:
        SpatlError: The process failed.
    """
    return found_by("spatl.perf.scale", str(num_clients), told=f"the run of {num_clients} clients")


def measured_here(num_clients: int, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """Do what `measure_clients` does in this process, whose peak memory counts."""
    torch.set_num_threads(1)
    config, marks = many_clients(num_clients, rounds=rounds), _Marks()
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "run"
        before = time.process_time()
        with marks.watching(_MARKS):
            run(config, directory, pictures=False, progress=False, warn=False)
        files = [each for each in directory.rglob("*") if each.is_file()]
        num_bytes = sum(each.stat().st_size for each in files)
    began, ends = marks.times["start"][-1], marks.times["round"]
    spans = [end - start for start, end in zip([began, *ends], ends, strict=False)]
    between = statistics.median(spans[:-1])
    return {
        "num_clients": num_clients, "participants": config.num_participants, "rounds": rounds,
        "start_seconds": began - before, "round_seconds": between, "end_seconds": max(0.0, spans[-1] - between),
        "files": len(files), "bytes": num_bytes, "peak_bytes": peak_bytes(),
    }  # fmt: skip


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(prog="python -m spatl.perf.scale", description="Measure one row, as JSON.")
    _parser.add_argument("clients", type=whole_number(10, 100_000), help="their number, 10 to 100000")
    print(to_json(measured_here(_parser.parse_args().clients)))
