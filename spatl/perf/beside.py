"""Measurement of engines whose clients train in processes of their own, beside the one that has them all in one."""

import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from spatl.perf.cases import Case
from spatl.perf.measure import Say, spread
from spatl.perf.process_tree import cpu_seconds_of

_HERE: Final = "inline"
FLOWER: Final = "flower"
_SHORT: Final = 1
_LONGER: Final = 10
"""Rounds measured here for one measured elsewhere: what Ray takes to start is seconds, more or less."""
QUIET: Final = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "OMP_NUM_THREADS": "1"}
"""Environment variables of every program: what others tell nobody, and one thread."""


def engine_command(name: str) -> Callable[[Case, int, Path], list[str]]:
    """Return what makes the command that runs a case for so many rounds in one of our engines, below a directory."""

    def command(case: Case, rounds: int, place: Path) -> list[str]:
        config = place / "case.yaml"
        own = case.config(rounds)
        config.write_text(own.model_copy(update={"engine": name}).to_yaml(), encoding="utf-8")
        return [sys.executable, "-m", "spatl", "run", str(config), "--out", str(place / "run")]

    return command


def _flower(case: Case, rounds: int, place: Path) -> list[str]:
    del place
    program = "from server.simulation.plain_flower import main; main()"
    return [sys.executable, "-c", program, case.model, str(case.num_clients), str(rounds)]


BESIDE: Final[Mapping[str, Callable[[Case, int, Path], list[str]]]] = {"ray": engine_command("ray"), FLOWER: _flower}
"""What is measured beside the engine `inline`, by name: ours on Flower's simulation runtime, and plain Flower on it."""


def measure_beside(case: Case, names: Sequence[str], *, turns: int, rounds: int, say: Say) -> list[dict[str, Any]]:
    """Measure updates in engines of several processes, in turns with the engine `inline` in a process of its own.

    Args:
        case: A network and a method; plain Flower's is FedAvg whatever it is.
        names: Keys of `BESIDE`.
        turns: How often each is run.
        rounds: Ten times as many are measured.
        say: Told what begins.

    Returns:
        By name, CPU milliseconds of an update in all processes together, those of `inline`, and how many times more it
        is: median, least and greatest over the turns.

    Raises:
        SpatlError: A program failed, or its CPU time cannot be told.
    """
    commands = {_HERE: engine_command(_HERE), **{name: BESIDE[name] for name in names}}
    found: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(turns):
        for name, command in commands.items():
            say(f"{case.model}, {case.method}: turn {turn + 1} of {turns}, {name}")
            short, long = (_seconds(command, case, number) for number in (_SHORT, _SHORT + _LONGER * rounds))
            found[name].append(1000 * (long - short) / (_LONGER * rounds) / case.num_clients)
    here = found[_HERE]
    return [
        {
            "model": case.model, "method": case.method, "beside": name, "num_clients": case.num_clients,
            "turns": turns, "rounds": _LONGER * rounds, "update_ms": spread(found[name]), "inline_ms": spread(here),
            "ratio": spread([other / own for own, other in zip(here, found[name], strict=True)]),
            "updates_per_second": 1000 / statistics.median(found[name]),
        }
        for name in names
    ]  # fmt: skip


def _seconds(command: Callable[[Case, int, Path], list[str]], case: Case, rounds: int) -> float:
    with tempfile.TemporaryDirectory() as place:
        return cpu_seconds_of(command(case, rounds, Path(place)), QUIET)
