"""Processes that Flower's programs run in end with what started them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from spatl.deployment.processes import descendants, environment, facts_of

CHILD = """
import subprocess, sys, time
from spatl.deployment.processes import end_with_parent
end_with_parent()
below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], start_new_session=True)
print(below.pid, flush=True)
time.sleep(120)
"""
PARENT = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], start_new_session=True)
print(child.pid, flush=True)
time.sleep(120)
"""


def is_alive(number):
    """Whether a process is there, and no zombie."""
    listing = subprocess.run(["ps", "-o", "stat=", "-p", str(number)], capture_output=True, text=True, check=False)
    return bool(listing.stdout.strip()) and not listing.stdout.startswith("Z")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_process_whose_parent_is_killed_ends_with_all_below_it():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        numbers = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(map(is_alive, numbers))
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(map(is_alive, numbers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, numbers))


def test_a_process_whose_parent_was_gone_before_it_looked_ends_too():
    with subprocess.Popen([sys.executable, "-c", ""]) as before:
        before.wait(60)
    code = "import sys, time; from spatl.deployment.processes import end_with_parent; end_with_parent(int(sys.argv[1]))"
    command = [sys.executable, "-c", f"{code}; time.sleep(60)", str(before.pid)]
    assert subprocess.run(command, timeout=50, check=False).returncode == 1


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_program_with_an_odd_name_is_a_process_like_others():
    """A name of 15 bytes at most may be any: here a bracket, blanks and a byte that is no text."""
    code = (
        "import ctypes, sys; ctypes.CDLL(None).prctl(15, b') \\xff 7 (x', 0, 0, 0); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as odd:
        assert odd.stdout is not None
        odd.stdout.readline()
        facts = facts_of(odd.pid)
        assert facts is not None
        assert (facts.parent, facts.state in "RS", facts.started > 0) == (os.getpid(), True, True)
        assert odd.pid in descendants(os.getpid())
        odd.communicate()
    assert facts_of(odd.pid) is None


def test_modules_in_the_directory_of_start_are_found_by_a_server_and_by_no_device(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "/owners/own")
    assert str(tmp_path) in environment(tmp_path)["PYTHONPATH"].split(os.pathsep)
    of_device = environment(tmp_path, here=False)["PYTHONPATH"].split(os.pathsep)
    assert str(tmp_path) not in of_device
    assert "/owners/own" in of_device
