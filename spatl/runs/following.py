"""Following a run while it goes on."""

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spatl.runs.files import HISTORY, TIMINGS
from spatl.runs.records import Tail


def follow(
    directory: Path, on_round: Callable[[dict[str, Any]], None], over: threading.Event, *, poll_seconds: float = 0.2
) -> None:
    """Pass on each line of a growing history once, with the round's timings, which are written before it.

    Args:
        directory: The run's.
        on_round: Called with each object of `history.jsonl`, and the clients' `training_seconds`, `selection_seconds`
            and `decision_seconds` added up.
        over: Set when nothing more will be written: then what is there is passed on, and that is all.
        poll_seconds: The time between two looks at the files.
    """
    history, timings = Tail(directory / HISTORY), Tail(directory / TIMINGS)
    parts = ("training_seconds", "selection_seconds", "decision_seconds")
    of_round: dict[int, list[dict[str, Any]]] = {}  # those that were written and not passed on yet
    while True:
        last_look = over.wait(poll_seconds)
        rows = history.new_rows()
        for timing in timings.new_rows() if rows else ():
            of_round.setdefault(timing["round"], []).append(timing)
        for row in rows:
            own = of_round.pop(row["round"], [])
            on_round({**row, **{part: math.fsum(timing[part] for timing in own) for part in parts}})
        if last_look:
            return
