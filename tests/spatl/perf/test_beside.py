"""CPU time of programs with all below them, and what follows from it for an update."""

import os
import sys
from pathlib import Path

import pytest

from spatl.errors import SpatlError
from spatl.perf import beside
from spatl.perf.cases import Case
from spatl.perf.process_tree import cpu_seconds_of

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
SPEND = "import time\nwhile time.process_time() < {}: pass\n"
GRANDCHILD = """
import os, subprocess, sys, time
child = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
subprocess.run([sys.executable, "-c", child + "; import time; time.sleep(0.5)", sys.argv[1]])
time.sleep(2.0)
"""


@needs_proc
@pytest.mark.slow
def test_what_processes_below_take_counts_also_once_their_parents_have_gone():
    """The grandchild, in a session of its own, goes on when its parent ends, as Ray's do: it spends half a second."""
    alone = cpu_seconds_of([sys.executable, "-c", "pass"])
    assert alone < 0.5
    assert cpu_seconds_of([sys.executable, "-c", GRANDCHILD, SPEND.format(0.5)]) > 0.35
    assert cpu_seconds_of([sys.executable, "-c", SPEND.format(0.6)]) > 0.4


@needs_proc
def test_a_program_that_fails_is_named_with_the_last_that_it_said():
    program = (
        "import os; print('first'); print('the disk is gone', flush=True); raise SystemExit(int(os.environ['HOW']))"
    )
    with pytest.raises(SpatlError, match=r"ended with status 3: the disk is gone$"):
        cpu_seconds_of([sys.executable, "-c", program], {"HOW": "3"})
    assert "HOW" not in os.environ


def test_an_update_is_what_more_rounds_take_more_however_long_the_start_takes(monkeypatch):
    """Inline takes 1 s and 2 ms an update, the others 9 s and 10 or 6 ms: 5 and 3 times as much."""
    of_an_update = {"inline": (1.0, 0.002), "ray": (9.0, 0.010), "flower": (9.0, 0.006)}
    case, called = Case("cnn", "fedavg", num_clients=7), []

    def told(command, settings):
        name, rounds = command
        called.append((name, rounds))
        assert settings["FLWR_TELEMETRY_ENABLED"] == "0"
        start, update = of_an_update[name]
        return start + rounds * case.num_clients * update

    def told_of(name):
        return lambda case, rounds, place: (name, rounds)

    monkeypatch.setattr(beside, "cpu_seconds_of", told)
    monkeypatch.setattr(beside, "engine_command", told_of)
    monkeypatch.setattr(beside, "BESIDE", {name: told_of(name) for name in ("ray", "flower")})
    found = beside.measure_beside(case, ["flower", "ray"], turns=2, rounds=3, say=lambda text: None)
    assert [row["beside"] for row in found] == ["flower", "ray"]
    assert [row["ratio"]["median"] for row in found] == pytest.approx([3, 5])
    assert [row["update_ms"]["median"] for row in found] == pytest.approx([6, 10])
    assert [row["updates_per_second"] for row in found] == pytest.approx([1000 / 6, 100])
    assert all(row["inline_ms"]["least"] == pytest.approx(2) for row in found)
    assert called == 2 * [(name, rounds) for name in ("inline", "flower", "ray") for rounds in (1, 31)]


@needs_proc
@pytest.mark.slow
def test_plain_flower_and_the_engine_run_as_they_are_measured(tmp_path):
    """Two clients, one round: each program ends, having done something, and ours leaves a run."""
    case = Case("cnn", "fedavg", num_clients=2)
    for name, command in {"inline": beside.engine_command("inline"), "flower": beside.BESIDE["flower"]}.items():
        place = tmp_path / name
        place.mkdir()
        assert cpu_seconds_of(command(case, 1, place), beside.QUIET) > 0
        assert (place / "run" / "summary.json").exists() == (name != "flower")
