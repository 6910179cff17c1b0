"""Measurement of rounds whose clients are trained by several processes side by side (`resources.workers`)."""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spatl.perf.cases import Case
from spatl.perf.measure import Say, spread
from spatl.runner import run
from spatl.runs.files import HISTORY
from spatl.runs.records import read_lines


def measure_workers(case: Case, numbers: Sequence[int], *, turns: int, rounds: int, say: Say) -> list[dict[str, Any]]:
    """Measure rounds with so many processes, in turns beside one process.

    Args:
        case: A network and a method.
        numbers: Numbers of processes.
        turns: How often each is run.
        rounds: Rounds of a run; one more comes before them.
        say: Told what begins.

    Returns:
        By number of processes, the seconds of a round by the clock on the wall, and how many times faster than in one
        process it is: median, least and greatest over the turns; and whether all ended with the same encoder.
    """
    seconds: dict[int, list[float]] = {number: [] for number in (0, *numbers)}
    encoders = set()
    for turn in range(turns):
        for number, found in seconds.items():
            say(f"{case.model}, {case.method}: turn {turn + 1} of {turns}, {number or 'no'} workers")
            time, encoder = _round_seconds(case, number, rounds)
            found.append(time)
            encoders.add(encoder)
    alone = seconds[0]
    return [
        {
            "model": case.model, "method": case.method, "workers": number, "round_seconds": spread(seconds[number]),
            "ratio": spread([one / other for one, other in zip(alone, seconds[number], strict=True)]),
            "same": len(encoders) == 1,
        }
        for number in numbers
    ]  # fmt: skip


def _round_seconds(case: Case, number: int, rounds: int) -> tuple[float, str]:
    """The median seconds of a round after the first, and a digest of the encoder after the last."""
    config = case.config(rounds + 1)
    config = config.model_copy(update={"resources": config.resources.model_copy(update={"workers": number})})
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "run"
        run(config, directory, pictures=False, progress=False, warn=False)
        rows = read_lines(directory / HISTORY)
    return statistics.median(row["seconds"] for row in rows[1:]), str(rows[-1]["encoder_fingerprint"])
