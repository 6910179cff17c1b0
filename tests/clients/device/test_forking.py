"""Processes that fork instead of importing PyTorch anew, and the program of Flower's name that asks for it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.device import handover
from spatl.deployment.processes import descendants
from tests.support.processes import gone, until

_SECONDS = 60.0
_SERVE = """
import sys
from pathlib import Path
from clients.device.forking import serve
{program}
serve(Path(sys.argv[1]), handle, parent=int(sys.argv[2]))
"""
_TELL = """
def handle():
    import os
    print("told", sys.argv[1:], os.environ["WHOSE"], os.getcwd(), sys.stdin.read())
    print("no error", file=sys.stderr)
    sys.exit(7)
"""
_HANG = """
def handle():
    import signal, time
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    print("at work", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def serving(directory: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for processes that ask at `directory / "socket"`."""
    path = directory / "socket"
    with subprocess.Popen([sys.executable, *command, str(path), str(os.getpid())]) as process:
        try:
            until(path.exists)
            yield process
        finally:
            process.kill()


def asking(directory: Path, *arguments: str) -> list[str]:
    return [*handover.command(directory / "socket"), *arguments]


def test_a_fork_has_all_that_the_process_has_that_asked_and_its_status_is_the_others(
    tmp_path,
):
    with serving(tmp_path, "-c", _SERVE.format(program=_TELL)):
        done = subprocess.run(
            asking(tmp_path, "--a", "b c"), input="read", capture_output=True, text=True, cwd="/", check=False,
            env={**os.environ, "WHOSE": "the caller's " + 100_000 * "x"},
        )  # fmt: skip
    assert done.returncode == 7
    assert done.stdout == f"told ['--a', 'b c'] the caller's {100_000 * 'x'} / read\n"
    assert done.stderr == "no error\n"


@pytest.mark.slow
@pytest.mark.parametrize(("argument", "status"), [("--help", 0), ("--nonsense", 2)])
def test_flowers_program_is_the_same_with_and_without_a_warm_process(tmp_path, argument, status):
    def ask() -> tuple[int, str, str]:
        done = subprocess.run(asking(tmp_path, argument), capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    without = ask()
    with serving(tmp_path, "-m", "clients.device.preloaded"):
        assert ask() == without
    assert without[0] == status
    assert "--runtime-api-address" in without[1] + without[2]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 3), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_fork_ends_as_the_process_that_asked_does(tmp_path, number, status):
    with serving(tmp_path, "-c", _SERVE.format(program=_HANG)) as process:
        callers = [subprocess.Popen(asking(tmp_path), stdout=subprocess.PIPE) for _ in range(2)]
        for caller in callers:
            assert caller.stdout is not None
            assert caller.stdout.readline() == b"at work\n"
        assert len(descendants(process.pid)) == 2
        for caller in callers:
            caller.send_signal(number)
            assert caller.wait(_SECONDS) == status
            assert caller.stdout is not None
            caller.stdout.close()
        until(lambda: not descendants(process.pid))


_START = """
import os, subprocess, sys
command = [each.replace("PARENT", str(os.getpid())) for each in sys.argv[1:]]
subprocess.Popen(command, stdin=subprocess.DEVNULL)
sys.stdin.read()
"""


def test_a_fork_ends_with_the_process_that_started_the_one_that_asked(tmp_path):
    """A killed SuperNode: nobody is left whom the one that asked could answer, and the fork may wait for ever."""
    with serving(tmp_path, "-c", _SERVE.format(program=_HANG)) as process:
        command = [sys.executable, "-c", _START, *asking(tmp_path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as supernode:
            assert supernode.stdout is not None
            assert supernode.stdout.readline() == b"at work\n"
            (asked,) = descendants(supernode.pid)
            assert len(descendants(process.pid)) == 1
            supernode.kill()
        until(lambda: gone(asked) and not descendants(process.pid))


def test_a_fork_ends_where_the_process_that_started_the_one_that_asked_was_gone_before_it_looked(tmp_path):
    """It has told its number, which is nobody's by then; the parent that there is now is another."""
    with subprocess.Popen([sys.executable, "-c", ""]) as before:
        before.wait(_SECONDS)
    with serving(tmp_path, "-c", _SERVE.format(program=_HANG)) as process:
        command = asking(tmp_path, "--parent-pid", str(before.pid))
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=_SECONDS, check=False)
        assert done.returncode == 1
        until(lambda: not descendants(process.pid))


@pytest.mark.slow
def test_a_message_without_a_warm_process_ends_with_its_supernode_too(tmp_path):
    """Flower's client tries again for as long as nobody answers; nobody does at a port that is closed."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        options = ["--runtime-api-address", f"127.0.0.1:{closed.getsockname()[1]}", "--insecure", "--token", "none"]
        command = [sys.executable, "-c", _START, *asking(tmp_path, *options, "--parent-pid", "PARENT")]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as supernode:
            told = supernode.stdout
            assert told is not None
            until(lambda: b"retrying" in told.readline())
            (message,) = descendants(supernode.pid)
            supernode.kill()
        until(lambda: gone(message))


def test_a_fork_that_is_killed_is_a_failure_to_who_asked(tmp_path):
    with serving(tmp_path, "-c", _SERVE.format(program=_HANG)) as process:
        with subprocess.Popen(asking(tmp_path), stdout=subprocess.PIPE) as caller:
            assert caller.stdout is not None
            caller.stdout.readline()
            (fork,) = descendants(process.pid)
            os.kill(fork, signal.SIGKILL)
        assert caller.returncode == 1


def test_it_ends_with_the_process_that_started_it(tmp_path):
    path, program = tmp_path / "socket", _SERVE.format(program=_TELL)
    code = (
        "import os, subprocess, sys; print(subprocess.Popen([sys.executable, '-c', *sys.argv[1:], str(os.getpid())],"
        " stdout=subprocess.DEVNULL).pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        number = int(parent.stdout.readline())
        until(path.exists)
        parent.kill()
    until(lambda: gone(number))
    with socket.socket(socket.AF_UNIX) as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(str(path))


def test_a_path_too_long_for_a_socket_serves_as_well(tmp_path):
    directory = tmp_path / (50 * "long")
    directory.mkdir()
    with serving(directory, "-c", _SERVE.format(program=_TELL)):
        done = subprocess.run(
            asking(directory), input="", capture_output=True, text=True, env={**os.environ, "WHOSE": ""}, check=False
        )
    assert done.returncode == 7


def test_where_no_socket_can_be_it_says_so_in_one_line(tmp_path):
    (tmp_path / "socket").mkdir()
    program = _SERVE.format(program=_TELL)
    command = [sys.executable, "-c", program, str(tmp_path / "socket"), str(os.getpid())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"cannot listen at {tmp_path / 'socket'}: Is a directory")
    assert done.stderr.count("\n") == 1
