"""What a run's caller is told of its rounds while it goes on."""

import threading
import time

import pytest

from spatl.errors import DamagedState
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
        def __init__(self, path, **how):
            super().__init__(path, **how)
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


TORN = {
    "an empty line": b"\n",
    "zeros": b"\0" * 40 + b"\n",
    "half a line, ended": b'{"round": 4, "accu\n',
    "no object": b"4\n",
    "a line that stands twice": b'{"round": 3}\n',
    "a round too far": b'{"round": 5}\n',
    "no round": b"{}\n",
    "a round that is no number": b'{"round": true}\n',
}
NO_ROWS = ("an empty line", "zeros", "half a line, ended", "no object")


@pytest.mark.parametrize("torn", TORN)
def test_what_a_killed_run_wrote_last_is_not_told_and_what_comes_in_its_place_is(torn, tmp_path):
    """The run that goes on cuts its record some time after the first look at it: timings of round 4, say, in vain."""
    history, timed = tmp_path / "history.jsonl", tmp_path / "timings.jsonl"
    for number in range(1, 4):
        append_lines(timed, timings(number))
        append_lines(history, [{"round": number}])
    whole = [(path, path.stat().st_size) for path in (history, timed)]
    append_lines(timed, timings(4))
    for path, _ in whole if torn in NO_ROWS else whole[:1]:
        with path.open("ab") as file:
            file.write(TORN[torn])
    told, over = [], threading.Event()
    thread = started(tmp_path, told, over)
    time.sleep(0.05)
    for path, size in whole:
        with path.open("r+b") as file:
            file.truncate(size)
    append_lines(timed, timings(4))
    append_lines(history, [{"round": 4}])
    over.set()
    thread.join(timeout=60)
    assert told == [{"round": number, **dict.fromkeys(PARTS, float(number))} for number in range(1, 5)]


@pytest.mark.parametrize("torn", TORN)
def test_what_is_torn_and_stays_is_said_with_its_line_once_nothing_more_comes(torn, tmp_path):
    append_lines(tmp_path / "history.jsonl", [{"round": number} for number in range(1, 4)])
    with (tmp_path / "history.jsonl").open("ab") as file:
        file.write(TORN[torn])
    told, over = [], threading.Event()
    over.set()
    with pytest.raises(DamagedState, match=r"history\.jsonl is damaged: line 4 is"):
        following.follow(tmp_path, told.append, over)
    assert [row["round"] for row in told] == [1, 2, 3]
