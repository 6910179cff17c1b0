"""What it costs to go on with a long run, and to watch it.

`python -m tests.studies.following [ROUNDS] [CLIENTS]` makes the files of a run and prints seconds of this process's
work: until the recorder has read them, until the caller has been told of the rounds that are over, and in five seconds
of waiting for the next.
"""

import json
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from server.recorder import Recorder
from spatl.runs.following import follow
from spatl.runs.ledger import Entry
from spatl.runs.records import ClientRow, HistoryRow, TimingRow

_WATCHED_SECONDS = 5.0


def write_long_run(directory: Path, rounds: int, num_clients: int) -> None:
    """Write the files of a run in which every client is in every round."""
    parts = {"values": 1, "indices": 1, "control": 0, "other": 5}
    message = Entry(1, 0, "uplink", "train", **parts, opposite=1).to_json()
    history = HistoryRow(
        1, 0.5, 0.4, 1.0, 1.0, num_clients, 0, 0, 0.8, 0.9, 1000, 1000, parts, parts, 32 * "a", 0.0, 1.0
    )  # fmt: skip
    client = ClientRow(1, 0, True, False, 0.5, 1.0, 1.0, 100, 0.8, 0.9, "keep_ratio", 0.8, 0.0, 100, 100, 1.0)
    rows: dict[str, list[dict[str, Any]]] = {
        "history": [asdict(history)],
        "clients": num_clients * [asdict(client)],
        "timings": num_clients * [asdict(TimingRow(1, 0, 1.0, 0.1, 0.1))],
        "ledger": num_clients * [message, message | {"direction": "downlink"}],
    }
    for name, of_round in rows.items():
        with (directory / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(1, rounds + 1):
                file.writelines(json.dumps(row | {"round": number}) + "\n" for row in of_round)


def main() -> None:
    """Print the three numbers."""
    rounds, num_clients = (int(text) for text in (*sys.argv[1:], *("6400", "10")[len(sys.argv) - 1 :]))
    over = threading.Event()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        write_long_run(directory, rounds, num_clients)
        started = time.process_time()
        Recorder(directory, done=rounds)
        print(f"until {rounds} rounds are read to go on: {time.process_time() - started:.2f} s")
        started = time.process_time()
        told: list[float] = []

        def on_round(row: dict[str, Any]) -> None:
            told[:] = [time.process_time()]
            if row["round"] == rounds:
                threading.Timer(_WATCHED_SECONDS, over.set).start()

        follow(directory, on_round, over)
        print(f"until the caller was told of them: {told[0] - started:.2f} s")
        print(f"of {_WATCHED_SECONDS:g} s of watching: {time.process_time() - told[0]:.2f} s")


if __name__ == "__main__":
    main()
