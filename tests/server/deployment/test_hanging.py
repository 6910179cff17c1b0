"""A ServerApp whose loop hangs while its process lives, heartbeats and all, is missed; one that works is not.

That it is then started again `test_restarts.py` looks at.
"""

import contextlib
import os
import signal
import subprocess
import sys

import pytest
from flwr.app import Message, MessageType, RecordDict

from server.deployment.watching import IDLE_SECONDS, AppWatch, end_lost
from server.grids import InProcessGrid, StreamingGrid
from server.pulse import PULSE_VARIABLE, pulsing
from server.waiting import REST_SECONDS
from spatl.deployment.processes import command_of, descendants, is_alive, state_of, wants_cpu
from tests.support.flower import echo
from tests.support.lossy import Clock
from tests.support.processes import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says of others' processes how they are")

LONGEST = 2 * IDLE_SECONDS
SLEEPS = "import time; time.sleep(600)"
COMPUTES = "import os\nos.nice(19)  # other tests may have the processor\nwhile True: pass"
STARTS = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {COMPUTES!r}])"
HANGS = """
import sys, threading
from pathlib import Path
from server.pulse import telling_where_it_hangs
with telling_where_it_hangs(Path(sys.argv[1])):
    print("ready", flush=True)
    threading.Event().wait()
"""


@contextlib.contextmanager
def app(program, *arguments):
    """A process that is called as Flower calls a ServerApp's."""
    command = [sys.executable, "-c", program, *arguments, "flwr-serverapp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            # A program that is just being loaded has no arguments yet, and is none of Flower's to who looks.
            until(lambda: "flwr-serverapp" in command_of(process.pid))
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


class Looking:
    """Looks at a process every second of a clock, with a pulse that stands still but for who touches it."""

    def __init__(self, process, pulse, longest=LONGEST):
        self.clock, self._process, self._pulse, self._stamp = Clock(), process, pulse, 0
        pulse.touch()
        self._watch = AppWatch(lambda: self.clock.now, pulse=pulse, longest_step=longest)
        self.after(0)

    def touch(self):
        self._stamp += 1
        os.utime(self._pulse, ns=(self._stamp, self._stamp))

    def after(self, seconds):
        """What it says at the end of so many seconds; that it says nothing before is checked."""
        for _ in range(int(seconds)):
            self.clock.now += 1.0
            found = self._watch.look([self._process.pid])
            if found is not None:
                return f"{found} at {self.clock.now:g}"
        return None


def asleep(process):
    until(lambda: state_of(process.pid) == "S" and not wants_cpu(process.pid))


@pytest.mark.slow
def test_one_that_neither_calls_nor_computes_is_missed_soon(tmp_path):
    with app(SLEEPS) as process:
        asleep(process)
        looking = Looking(process, tmp_path / "pulse")
        looking.touch()
        assert looking.after(IDLE_SECONDS) is None
        looking.touch()  # it came back in time
        assert looking.after(IDLE_SECONDS) is None
        assert looking.after(1) == f"has done nothing for {IDLE_SECONDS:g} s at {2 * IDLE_SECONDS + 1:g}"


def test_one_that_has_called_nothing_yet_may_wait_for_what_it_loads(tmp_path):
    with app(SLEEPS) as process:
        asleep(process)
        looking = Looking(process, tmp_path / "pulse")
        assert looking.after(LONGEST - 1) is None
        assert looking.after(1) == f"has asked for nothing for {LONGEST:g} s (--longest-step) at {LONGEST:g}"


@pytest.mark.slow
@pytest.mark.parametrize("program", [COMPUTES, STARTS])
def test_one_that_computes_by_itself_or_by_what_it_starts_may_take_as_long_as_a_step_may(tmp_path, program):
    with app(program) as process:
        looking = Looking(process, tmp_path / "pulse", longest=IDLE_SECONDS + 30)
        looking.touch()
        until(lambda: any(map(wants_cpu, [process.pid, *descendants(process.pid)])))
        looking.after(1)
        assert looking.after(IDLE_SECONDS + 29) is None
        assert "(--longest-step)" in looking.after(1)


@pytest.mark.slow
def test_neither_a_machine_that_slept_nor_a_pulse_that_is_gone_says_anything(tmp_path):
    with app(SLEEPS) as process:
        asleep(process)
        looking = Looking(process, tmp_path / "pulse")
        looking.touch()
        looking.after(1)
        looking.clock.now += 10 * LONGEST
        assert looking.after(IDLE_SECONDS - 3) is None
        (tmp_path / "pulse").unlink()
        assert looking.after(2 * LONGEST) is None


@pytest.mark.slow
def test_a_step_may_take_any_time_where_it_is_said_so(tmp_path):
    with app(COMPUTES) as process:
        until(lambda: wants_cpu(process.pid))
        looking = Looking(process, tmp_path / "pulse", longest=None)
        looking.touch()
        assert looking.after(LONGEST) is None


def test_whatever_it_waits_for_is_less_than_it_may_be_idle():
    assert 2 * REST_SECONDS <= IDLE_SECONDS


def test_each_call_of_a_grid_touches_the_pulse_while_replies_are_waited_for(tmp_path, monkeypatch):
    pulse, stamps = tmp_path / "pulse", []
    pulse.touch()
    monkeypatch.setenv(PULSE_VARIABLE, str(pulse))

    class Late(InProcessGrid):
        def pull_messages(self, message_ids):
            stamps.append(pulse.stat().st_mtime_ns)
            os.utime(pulse, ns=(1, 1))
            return super().pull_messages(message_ids) if len(stamps) > 3 else []

    grid = StreamingGrid(pulsing(Late(echo, num_clients=1, run_config={})), poll_seconds=0.0)
    (node,) = grid.get_node_ids()
    message = Message(RecordDict(), dst_node_id=node, message_type=MessageType.TRAIN, group_id="1")
    assert len(list(grid.send_and_receive([message]))) == 1
    assert len(stamps) == 4
    assert min(stamps) > 1
    os.utime(pulse, ns=(1, 1))
    list(grid.get_node_ids())
    assert pulse.stat().st_mtime_ns > 1


def test_a_grid_that_nobody_looks_at_is_left_as_it_is():
    grid = InProcessGrid(echo, num_clients=1, run_config={})
    assert pulsing(grid) is grid


@pytest.mark.slow
def test_one_that_hangs_says_where_before_it_is_killed(tmp_path, monkeypatch):
    monkeypatch.setenv(PULSE_VARIABLE, str(tmp_path / "pulse"))
    log = tmp_path / "flower.log"
    with app(HANGS, str(log)) as process:
        assert process.stdout.readline() == b"ready\n"
        asleep(process)  # it waits by now
        end_lost([process.pid])
        until(lambda: not is_alive(process.pid))
    assert "threading.py" in log.read_text()
