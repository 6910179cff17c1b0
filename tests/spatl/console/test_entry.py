"""Signals end the command line in one line, whenever they come; tried on processes of their own."""

import signal
import subprocess
import sys
import time

import pytest

from spatl.console.entry import STATUS
from tests.support.federations import tiny_config

_READY = 60.0


@pytest.fixture
def start():
    """Starts Python in a process of its own; `ignored` are signals that whoever starts it has it ignore."""
    processes = []

    def started(*arguments, ignored=()):
        def ignore():
            # Whoever runs the tests in the background may have them ignore Ctrl-C.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True, preexec_fn=ignore,
        )  # fmt: skip
        processes.append(process)
        return process

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def ended(process):
    """The exit status of a process, and what it said on standard error."""
    _, error = process.communicate(timeout=_READY)
    return process.returncode, error


@pytest.fixture
def long_run(tmp_path):
    """A run of many rounds, and the file that it has once a round is over."""
    path = tmp_path / "long.yaml"
    path.write_text(tiny_config(rounds=5000).to_yaml())
    return ["-m", "spatl", "run", str(path), "--out", str(tmp_path / "out")], tmp_path / "out" / "history.jsonl"


def wait_for(path):
    deadline = time.monotonic() + _READY
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def stopped_in_one_line(process, number):
    """Send a signal, and see how the process ends."""
    process.send_signal(number)
    status, error = ended(process)
    assert status == STATUS
    assert error.strip().splitlines()[-1].startswith("spatl: interrupted")
    assert "Traceback" not in error


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_stops_a_run_in_one_line(name, long_run, start):
    command, history = long_run
    process = start(*command)
    wait_for(history)
    stopped_in_one_line(process, getattr(signal, name))


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0])
def test_it_gives_no_traceback_at_any_moment(seconds, long_run, start):
    process = start(*long_run[0])
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    status, error = ended(process)
    # Before the first line of this package the interpreter has no handler, and the signal ends it without a word.
    assert status in (STATUS, -signal.SIGTERM)
    assert "Traceback" not in error


@pytest.mark.slow
def test_a_second_one_ends_it_at_once(start):
    """Of a command that does not stop at the first: a thread of the test's own holds it up."""
    code = (
        "import os, signal, sys, time\n"
        "from spatl.console import entry\n"
        "import spatl.console.main as m\n"
        "def held(options, console=None):\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        print('stopping', flush=True)\n"
        "        time.sleep(60)\n"
        "class Parser:\n"
        "    def parse_args(self, words):\n"
        "        from argparse import Namespace\n"
        "        return Namespace(command=held, debug=False)\n"
        "m._parser_for = lambda words: Parser()\n"
        "entry.main([])\n"
    )
    process = start("-c", code)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stopping\n"
    process.send_signal(signal.SIGINT)
    status, error = ended(process)
    assert (status, error) == (STATUS, "spatl: interrupted\n")


@pytest.mark.slow
def test_a_signal_that_is_to_be_ignored_is_ignored_and_another_stops_the_run(long_run, start):
    command, history = long_run
    process = start(*command, ignored=[signal.SIGHUP])
    wait_for(history)
    process.send_signal(signal.SIGHUP)
    time.sleep(1.0)
    assert process.poll() is None
    stopped_in_one_line(process, signal.SIGINT)


def test_an_interrupt_that_escapes_the_command_ends_it_in_one_line_too(start):
    """As where a library swallows the first and raises another while an error is told."""
    code = (
        "from spatl.console import entry\n"
        "import spatl.console.main as m\n"
        "def escaping(arguments, begin):\n"
        "    begin()\n"
        "    raise KeyboardInterrupt\n"
        "m.main = escaping\n"
        "entry.script()\n"
    )
    assert ended(start("-c", code)) == (STATUS, "spatl: interrupted\n")


def test_a_module_that_lets_go_of_every_exception_does_not_keep_a_command_alive(start, tmp_path):
    (tmp_path / "stubborn.py").write_text(
        "import time\nprint('importing', flush=True)\n"
        "try:\n    time.sleep(60)\nexcept BaseException:\n    time.sleep(60)\n"
    )
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from spatl.console import entry\n"
        "import spatl.console.main as m\n"
        "def importing(arguments, begin):\n"
        "    begin()\n"
        "    import stubborn\n"
        "m.main = importing\n"
        "entry.script()\n"
    )
    process = start("-c", code)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (STATUS, "spatl: interrupted\n")
