"""Measurement of what one update of a client takes, beside the bare loop.

Another program on the machine slows both alike, and for a while: so they take turns, in CPU seconds of one thread, and
what counts is their ratio in each turn. What a run takes once, at its start and end, is left out: a run of few rounds
is taken from one of more.
"""

import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from spatl.perf.bare import BareLoop
from spatl.perf.cases import Case
from spatl.perf.parts import PARTS, PartsClock
from spatl.rounds.blueprint import make_blueprint
from spatl.runner import run
from spatl.wire.coder import IS_COMPILED

_SHORT: Final = 1  # rounds of the run that is taken away

Say = Callable[[str], None]


def measure(case: Case, *, turns: int, rounds: int, say: Say = lambda text: None) -> dict[str, Any]:
    """Measure a case.

    Args:
        case: What is measured.
        turns: How often the engine and the bare loop take turns, once at least.
        rounds: The rounds that the longer run has more than the shorter one, once at least.
        say: Told what is done next.

    Returns:
        Milliseconds of an update in the engine and in the bare loop, and their ratio, bare by engine, each with
        its median, least and greatest over the turns; the engine's by part, of a run of its own; seconds of a run's
        start and end.
    """
    torch.set_num_threads(1)
    loop = BareLoop(make_blueprint(case.config(_SHORT)))
    loop.round_()
    _engine_seconds(case, _SHORT)
    found: dict[str, list[float]] = {"engine_ms": [], "bare_ms": [], "ratio": [], "fixed_seconds": []}
    for turn in range(turns):
        say(f"{case.model}, {case.method}: turn {turn + 1} of {turns}")
        before = _seconds(loop.round_)
        short, long = _engine_seconds(case, _SHORT), _engine_seconds(case, _SHORT + rounds)
        after = _seconds(loop.round_)
        engine, bare = (long - short) / rounds / case.num_clients, (before + after) / 2 / case.num_clients
        found["engine_ms"].append(1000 * engine)
        found["bare_ms"].append(1000 * bare)
        found["ratio"].append(bare / engine)
        found["fixed_seconds"].append(short - engine * case.num_clients)
    say(f"{case.model}, {case.method}: by part")
    return {
        "model": case.model, "method": case.method, "memory_format": case.memory_format,
        "group_size": case.group_size,
        "num_clients": case.num_clients, "turns": turns, "rounds": rounds,
        **{name: spread(values) for name, values in found.items()},
        "updates_per_second": 1000 / statistics.median(found["engine_ms"]),
        "parts_ms": parts(case, rounds=rounds),
    }  # fmt: skip


def parts(case: Case, *, rounds: int) -> dict[str, float]:
    """Return milliseconds of an update by part, `other` with all that is in none; they sum up to the whole."""
    found = []
    for number in (_SHORT, _SHORT + rounds):
        clock = PartsClock()
        with clock.watching():
            whole = _engine_seconds(case, number)
        found.append(clock.parts_of(whole))
    scale = 1000 / rounds / case.num_clients
    return {part: scale * (found[1][part] - found[0][part]) for part in (*PARTS, "other")}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the least and the greatest of some values."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def machine() -> dict[str, Any]:
    """Return what figures depend on beside the program."""
    return {
        "machine": platform.machine(), "system": platform.system(), "python": platform.python_version(),
        "torch": torch.__version__, "threads": 1, "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "compiled_coder": IS_COMPILED,
    }  # fmt: skip


def peak_bytes() -> int:
    """Return the most memory that this process has had so far."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, where the other counts what the process had that this one was forked from
        return 1024 * int(status.read_text(encoding="ascii").partition("VmHWM:")[2].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _engine_seconds(case: Case, rounds: int) -> float:
    with tempfile.TemporaryDirectory() as place:
        config = case.config(rounds)
        return _seconds(lambda: run(config, Path(place) / "run", pictures=False, progress=False, warn=False))


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
