"""Flower's SuperExec with a secret, and without secrets in what others see: `python -m spatl.deployment.superexec`.

A SuperExec asks a SuperLink or a SuperNode on loopback for work and starts a process for it. Flower 1.41 lets anybody
of the machine ask, where it starts the SuperExec itself, and hands the token of each piece of work over as an argument,
which every user of the machine can read in the list of processes. Here both sides know a secret, new with each start,
by which Flower's own authentication of the SuperExec works, and a token goes in a file that only its owner may read.
After a piece of work it asks for the next more often than Flower's (`spatl.deployment.pauses`).
"""

import os
import secrets
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from spatl.deployment.pauses import Pauses

PROGRAM: Final = "flower-superexec"
SECRET_VARIABLE: Final = "SPATL_SUPEREXEC_SECRET"
"""Environment variable with the path of the file that holds the secret."""
COMMAND: Final = (sys.executable, "-P", "-m", "spatl.deployment.superexec")
"""What is to be started in the place of Flower's program, with its arguments."""
_SECRET_BYTES = 32
_PAUSES_GROW = 1.25
_TOKEN, _TOKEN_FILE = "--token", "--token-file"
_PREFIX = "token-"


def make_secret(home: Path) -> dict[str, str]:
    """Make a new secret in Flower's directory; return the environment that leads both sides to it."""
    path = home / "superexec.secret"
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secrets.token_bytes(_SECRET_BYTES))
    return {SECRET_VARIABLE: str(path)}


def read_secret() -> bytes:
    """Return the secret that the environment leads to."""
    return Path(os.environ[SECRET_VARIABLE]).read_bytes()


def make_program(directory: Path) -> None:
    """Put this program into a directory that goes before Flower's programs."""
    program = directory / PROGRAM
    program.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n', encoding="utf-8")
    program.chmod(0o700)


class TokenFiles:
    """Starts programs with their tokens in files, each of which goes once its program has ended.

    Args:
        directory: Where the files lie.
        pauses: Pauses between two questions for work, which begin anew with each start.
    """

    def __init__(self, directory: Path, pauses: Pauses | None = None) -> None:
        self._directory = directory
        self._pauses = pauses
        self._started: list[tuple[subprocess.Popen[bytes], Path]] = []
        for left in directory.glob(f"{_PREFIX}*"):
            left.unlink(missing_ok=True)

    def start(self, arguments: Sequence[str], **named: Any) -> "subprocess.Popen[bytes]":
        """Start a program as `subprocess.Popen` does, with `--token-file` in the place of `--token`."""
        if self._pauses is not None:
            self._pauses.begin_anew()
        running = []
        for process, path in self._started:
            if process.poll() is None:
                running.append((process, path))
            else:
                path.unlink(missing_ok=True)
        place = list(arguments).index(_TOKEN)
        handle, name = tempfile.mkstemp(prefix=_PREFIX, dir=self._directory)  # its owner's alone
        with os.fdopen(handle, "w") as file:
            file.write(arguments[place + 1])
        process = subprocess.Popen([*arguments[:place], _TOKEN_FILE, name, *arguments[place + 2 :]], **named)
        self._started = [*running, (process, Path(name))]
        return process


def main() -> None:
    """Run Flower's program, by its own arguments."""
    pauses = Pauses(_PAUSES_GROW)
    files = TokenFiles(Path(os.environ["FLWR_HOME"]), pauses)
    executor = import_module("flwr.supercore.superexec.executor.subprocess_executor")
    executor.subprocess = SimpleNamespace(Popen=files.start, DEVNULL=subprocess.DEVNULL)  # type: ignore[attr-defined]
    loop: Any = import_module("flwr.supercore.superexec.run_superexec")
    loop.time = SimpleNamespace(sleep=pauses.sleep)
    sys.argv = [PROGRAM, *sys.argv[1:], "--superexec-auth-secret-file", os.environ[SECRET_VARIABLE]]
    import_module("flwr.supercore.cli.flower_superexec").flower_superexec()


if __name__ == "__main__":
    main()
