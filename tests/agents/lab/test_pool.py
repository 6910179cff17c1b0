"""Processes of the lab end with the one that started them."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from spatl.deployment.processes import descendants, is_alive

ROOT = Path(__file__).parents[3]
PROGRAM = """
import time
from agents.lab.pool import process_pool
with process_pool(2) as pool:
    for _ in range(2):
        pool.submit(time.sleep, 0.01).result()
        pool.submit(time.sleep, 300)
    print("at work", flush=True)
"""


@pytest.mark.slow
def test_processes_at_work_end_where_the_one_that_started_them_is_killed():
    with subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "at work\n"
        below = descendants(program.pid)
        assert len(below) >= 2
        program.kill()
        program.wait()
    deadline = time.monotonic() + 30
    while any(map(is_alive, below)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, below))
