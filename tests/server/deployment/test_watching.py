"""A ServerApp that is killed, or stopped, is missed by who started it within seconds."""

import contextlib
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from server.deployment.control import LinkLost, StartedSuperLink
from server.deployment.watching import GONE_SECONDS, STILL_SECONDS, AppWatch, end_lost
from spatl.deployment.processes import is_alive, state_of
from spatl.errors import SpatlError
from spatl.json_files import write_json
from spatl.runs.files import ERROR
from tests.support.federations import tiny_config
from tests.support.processes import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says of others' processes how they are")

COMMAND = (sys.executable, "-c", "import time; time.sleep(600)")


class Clock:
    """Stands still but for who moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def processes():
    """A process that is called as Flower calls a ServerApp's, and another one."""
    with contextlib.ExitStack() as stack:
        found = [
            stack.enter_context(subprocess.Popen([*COMMAND, name])) for name in ("flwr-serverapp", "flower-superexec")
        ]
        for each in found:
            stack.callback(each.kill)
            until(lambda each=each: state_of(each.pid) in ("S", "R"))
        yield found


def below(processes):
    return [each.pid for each in processes if is_alive(each.pid)]


def test_nothing_is_missed_before_it_was_there_nor_while_it_works(processes):
    clock = Clock()
    watch, (app, other) = AppWatch(clock), processes
    for clock.now in (0.0, 100.0):
        assert watch.look([other.pid]) is None
    for clock.now in (200.0, 300.0):
        assert watch.look(below(processes)) is None
    assert watch.look([app.pid]) is None  # whatever else has ended


def test_one_that_was_killed_is_missed_once_what_it_left_had_time_to_arrive(processes):
    clock = Clock()
    watch, (app, _) = AppWatch(clock), processes
    watch.look(below(processes))
    app.kill()
    app.wait()
    assert watch.look(below(processes)) is None
    clock.now = GONE_SECONDS - 0.1
    assert watch.look(below(processes)) is None
    clock.now = GONE_SECONDS
    assert watch.look(below(processes)) == "is gone"


def test_one_that_was_stopped_is_missed_after_a_while_unless_it_goes_on(processes):
    clock = Clock()
    watch, (app, _) = AppWatch(clock), processes
    for begin in (0.0, 1000.0):
        clock.now = begin
        os.kill(app.pid, signal.SIGSTOP)
        until(lambda: state_of(app.pid) == "T")
        assert watch.look(below(processes)) is None
        clock.now = begin + STILL_SECONDS - 0.1
        assert watch.look(below(processes)) is None
        if begin == 0.0:
            os.kill(app.pid, signal.SIGCONT)
            until(lambda: state_of(app.pid) != "T")
            assert watch.look(below(processes)) is None
    clock.now = 1000.0 + STILL_SECONDS
    assert watch.look(below(processes)) == "stands still"
    end_lost(below(processes))
    until(lambda: not is_alive(app.pid))
    assert below(processes) == [processes[1].pid]


class Running:
    """The Control API of a SuperLink whose run is over when it is looked at for the second time."""

    looks = 0

    def StartRun(self, request):  # noqa: N802  (as Flower names it)
        return SimpleNamespace(run_id=1)

    def ListRuns(self, request):  # noqa: N802
        self.looks += 1
        status = "running" if self.looks == 1 else "finished"
        return SimpleNamespace(run_dict={1: SimpleNamespace(status=SimpleNamespace(status=status))})

    def ListNodes(self, request):  # noqa: N802
        return SimpleNamespace(nodes_info=[])


@pytest.mark.parametrize("told", [False, True])
def test_whoever_started_it_is_told_unless_it_has_said_itself_why_it_ended(tmp_path, monkeypatch, told):
    def look(self, below):
        if told:
            write_json(tmp_path / ERROR, {"error": "SpatlError", "message": "no space left"})
        return "is gone"

    monkeypatch.setattr(AppWatch, "look", look)
    monkeypatch.setattr("server.deployment.control.build_fab_from_disk", lambda app: b"")
    link = StartedSuperLink(SimpleNamespace(pid=os.getpid(), poll=lambda: None), Running(), None, tmp_path / "log")
    with pytest.raises(SpatlError, match="no space left" if told else "the ServerApp is gone; see ") as caught:
        link.run(tiny_config(), tmp_path, lambda line: None, resume=False, nodes={})
    assert isinstance(caught.value, LinkLost) != told
