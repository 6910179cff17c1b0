"""What is measured in a process of its own is named rightly, or one line says what was expected."""

import argparse
import subprocess
import sys

import pytest

from spatl.perf.own_process import whole_number


def test_a_whole_number_is_one_within_its_bounds():
    read = whole_number(10, 100)
    assert [read(each) for each in ("10", "37", "100")] == [10, 37, 100]


@pytest.mark.parametrize("text", ["9", "101", "-10", "1e1", "x", "", "²", "9" * 5000])
def test_all_else_is_named_with_what_was_expected(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a whole number from 10 to 100, got"):
        whole_number(10, 100)(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("sizes", ["86", "fedprox"], "invalid choice: 'fedprox'"),
        ("sizes", ["0", "fedavg"], "from 1 to 100, got '0'"),
        ("scale", ["3"], "from 10 to 100000, got '3'"),
    ],
)
def test_a_row_that_cannot_be_measured_ends_with_one_line(module, arguments, said):
    command = [sys.executable, "-m", f"spatl.perf.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
