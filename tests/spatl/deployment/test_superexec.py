"""The SuperExec's secret and the tokens of its work: in files of their owner's, and in nobody's list of processes."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from spatl.deployment.pauses import Pauses
from spatl.deployment.superexec import COMMAND, SECRET_VARIABLE, TokenFiles, make_program, make_secret, read_secret

LOOKS = """
import pathlib, sys
seen = pathlib.Path(sys.argv[-1])
token = pathlib.Path(sys.argv[sys.argv.index("--token-file") + 1]).read_text()
seen.write_text(" ".join([*sys.argv[1:-1], token]))
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_after_a_start_the_next_piece_of_work_is_asked_for_soon(tmp_path):
    slept = list[float]()
    pauses = Pauses(2, slept.append)
    files = TokenFiles(tmp_path, pauses)
    pauses.sleep(1.0)
    pauses.sleep(1.0)
    assert files.start(["true", "--token", "secret"]).wait() == 0
    pauses.sleep(1.0)
    assert slept[0] == slept[2] < slept[1]


@pytest.fixture
def open_umask():
    """Files that are as open to others as they can be, unless somebody closes them."""
    before = os.umask(0)
    yield
    os.umask(before)


def test_a_secret_is_its_owners_and_new_with_each_start(tmp_path, monkeypatch, open_umask):
    found = set()
    for _ in range(3):
        ((name, path),) = make_secret(tmp_path).items()
        assert mode(Path(path)) == 0o600
        monkeypatch.setenv(name, path)
        found.add(read_secret())
    assert name == SECRET_VARIABLE
    assert {len(secret) for secret in found} == {32}
    assert len(found) == 3


def test_a_token_goes_in_a_file_which_goes_when_its_program_has_ended(tmp_path, open_umask):
    files, seen = TokenFiles(tmp_path), tmp_path / "seen"
    process = files.start([sys.executable, "-c", LOOKS, "--address", "a", "--token", "secret", "--insecure", str(seen)])
    (path,) = tmp_path.glob("token-*")
    assert mode(path) == 0o600
    assert process.wait() == 0
    assert seen.read_text() == f"--address a --token-file {path} --insecure secret"
    waiting = files.start([sys.executable, "-c", "input()", "--token", "another"], stdin=subprocess.PIPE)
    left = list(tmp_path.glob("token-*"))
    assert [each.read_text() for each in left] == ["another"]
    assert waiting.stdin is not None
    waiting.stdin.close()
    waiting.wait()
    TokenFiles(tmp_path)  # of the next start
    assert not list(tmp_path.glob("token-*"))


@pytest.mark.slow
def test_the_program_stands_before_flowers(tmp_path):
    make_program(tmp_path)
    program = tmp_path / "flower-superexec"
    assert mode(program) == 0o700
    assert program.read_text().endswith(' "$@"\n')
    settings = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "FLWR_HOME": str(tmp_path),
                **make_secret(tmp_path)}  # fmt: skip
    done = subprocess.run(["flower-superexec", "--help"], env=settings, capture_output=True, text=True, check=True)
    assert "--superexec-auth-secret-file" in done.stdout
    assert COMMAND[-1] == "spatl.deployment.superexec"
