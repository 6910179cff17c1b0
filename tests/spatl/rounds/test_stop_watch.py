"""Stop-watch of a round: what a client has waited for others is none of its time."""

import time

import pytest

from spatl.rounds.stop_watch import StopWatch


def test_what_went_to_others_is_left_out_of_the_part_and_of_all(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    watch = StopWatch()
    now[0] += 1
    with watch.timed("training"):
        now[0] += 10
    watch.leave_out("training", 7.5)
    now[0] += 2
    assert watch.seconds == {"training": pytest.approx(2.5)}
    assert watch.total == pytest.approx(5.5)
