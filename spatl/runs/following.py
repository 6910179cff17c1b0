"""Following a run while it goes on."""

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from spatl.errors import DamagedState
from spatl.runs.files import HISTORY, TIMINGS
from spatl.runs.records import parse_line


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

    Raises:
        DamagedState: A line that is none stands in one of them, and nothing more will be written. Before that, it may
            be what a killed run wrote last, which the one that goes on cuts off.
    """
    history, timings = Tail(directory / HISTORY, one_a_round=True), Tail(directory / TIMINGS)
    parts = ("training_seconds", "selection_seconds", "decision_seconds")
    while True:
        last_look = over.wait(poll_seconds)
        rows = history.new_rows()
        of_round: dict[int, list[dict[str, Any]]] = {}
        for timing in timings.new_rows(until=rows[-1]["round"]) if rows else ():
            of_round.setdefault(timing["round"], []).append(timing)
        for row in rows:
            own = of_round.get(row["round"], [])
            on_round({**row, **{part: math.fsum(timing[part] for timing in own) for part in parts}})
        if last_look:
            for tail in (history, timings):
                if tail.damage is not None:
                    raise tail.damage
            return


class Tail:
    """Reads a growing JSON-lines file of rounds, each time from where it stopped.

    Args:
        path: The file, which may come to be later.
        one_a_round: Whether there is one line for each round, from the first on; otherwise any number.

    Attributes:
        bytes_read: How many bytes were read so far.
        damage: What is wrong with the line where the last look stopped, or None. It is looked at again.
    """

    def __init__(self, path: Path, *, one_a_round: bool = False) -> None:
        self._path = path
        self._one_a_round = one_a_round
        self.bytes_read = 0
        self.damage: DamagedState | None = None
        self._from_the_start()

    def new_rows(self, *, until: int | None = None) -> list[dict[str, Any]]:
        """Return the rows of the lines that are whole and were not there before, up to the first that is none.

        A run that goes on cuts what a killed one wrote last. If the last line that was read is not there any more, the
        rows of its round and of later ones are new.

        Args:
            until: The last round whose lines are read by now; None for all.
        """
        self.damage = None
        try:
            with self._path.open("rb") as file:
                file.seek(self._end - len(self._last))
                data = self._read(file)
                if data.startswith(self._last):
                    return self._rows(data[len(self._last) :], until)
                again = json.loads(self._last)["round"]
                self._from_the_start()
                file.seek(0)
                return [row for row in self._rows(self._read(file), until) if row["round"] >= again]
        except FileNotFoundError:
            return []

    def _from_the_start(self) -> None:
        self._end = self._number = self._round = 0  # of the last line that was read
        self._last = b""

    def _read(self, file: BinaryIO) -> bytes:
        data = file.read()
        self.bytes_read += len(data)
        return data

    def _rows(self, data: bytes, until: int | None) -> list[dict[str, Any]]:
        rows = []
        for line in data.split(b"\n")[:-1]:
            try:
                row = self._row(line)
            except DamagedState as error:
                self.damage = error
                break
            if until is not None and row["round"] > until:
                break
            rows.append(row)
            self._last = line + b"\n"
            self._end += len(self._last)
            self._number += 1
            self._round = row["round"]
        return rows

    def _row(self, line: bytes) -> dict[str, Any]:
        row = parse_line(self._path, self._number + 1, line)
        number = row.get("round")
        due = self._round + self._one_a_round
        if type(number) is not int or (number != due if self._one_a_round else number < due):
            at_least = "" if self._one_a_round else " or a later one"
            raise DamagedState(
                f"{self._path} is damaged: line {self._number + 1} is of round {number}, expected round {due}{at_least}"
            )
        return row
