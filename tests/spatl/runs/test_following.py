"""What a run's caller is told of its rounds while it goes on."""

import threading
import time

import pytest

from spatl.runs import following
from spatl.runs.records import append_lines

PARTS = ("training_seconds", "selection_seconds", "decision_seconds")


def timings(number):
    return [{"round": number, "client": client, **dict.fromkeys(PARTS, number / 2)} for client in range(2)]


def started(directory, told, over):
    """A thread that follows a run and keeps what it is told."""
    arguments = (directory, told.append, over)
    thread = threading.Thread(target=following.follow, args=arguments, kwargs={"poll_seconds": 0.001})
    thread.start()
    return thread


@pytest.mark.parametrize("ahead", [0, 1])
def test_each_round_is_told_once_with_its_own_timings_also_where_the_next_ones_are_there_already(ahead, tmp_path):
    """Each client of round r took r / 2 seconds for each part; `ahead` rounds have their timings before their line."""
    told, over = [], threading.Event()
    thread = started(tmp_path, told, over)
    for number in range(1, 1 + ahead):
        append_lines(tmp_path / "timings.jsonl", timings(number))
    for number in range(1, 31):
        append_lines(tmp_path / "timings.jsonl", timings(number + ahead))
        append_lines(tmp_path / "history.jsonl", [{"round": number}])
        time.sleep(0.002 * (number % 3))
    over.set()
    thread.join(timeout=60)
    assert told == [{"round": number, **dict.fromkeys(PARTS, float(number))} for number in range(1, 31)]


def test_following_a_run_that_goes_on_reads_what_it_wrote_before_once(tmp_path, monkeypatch):
    """Four hundred rounds are there, five come: reading them all for each poll or each new one would be many times."""
    tails = []

    class Counted(following.Tail):
        def __init__(self, path):
            super().__init__(path)
            tails.append(self)

    monkeypatch.setattr(following, "Tail", Counted)
    append_lines(tmp_path / "timings.jsonl", [row for number in range(1, 401) for row in timings(number)])
    append_lines(tmp_path / "history.jsonl", [{"round": number, "note": 100 * "x"} for number in range(1, 401)])
    told, over = [], threading.Event()
    thread = started(tmp_path, told, over)
    for number in range(401, 406):
        append_lines(tmp_path / "timings.jsonl", timings(number))
        append_lines(tmp_path / "history.jsonl", [{"round": number, "note": 100 * "x"}])
        time.sleep(0.05)
    over.set()
    thread.join(timeout=60)
    assert [row["round"] for row in told] == list(range(1, 406))
    assert all(row["training_seconds"] == row["round"] for row in told)
    assert sum(tail.bytes_read for tail in tails) < 2 * sum(path.stat().st_size for path in tmp_path.iterdir())
