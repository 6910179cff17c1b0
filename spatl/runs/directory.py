"""Directory of a run: its locks, how far the run in it has come, and its config."""

import contextlib
import itertools
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import load_config, read_config
from spatl.deployment.sites import RUN
from spatl.disk.locks import alone_in, is_locked
from spatl.errors import ConfigError, DamagedState, SpatlError
from spatl.runs.files import (
    CHECKPOINT,
    CONFIG,
    ERROR,
    FLOWER_LOG,
    HISTORY,
    LOCK,
    LOG,
    MARKS,
    MEMBERS,
    REGISTRATION,
    SERVERS_LOCK,
    SUMMARY,
    TENSORBOARD,
    WAITING,
)
from spatl.runs.marks import read_marked, replace_marked
from spatl.runs.records import read_lines

_OF_EVERY_RUN = ("method", "rounds", "seed", "data", "partition", "model", "training", "server", "wire")
"""Keys that the config of a run has, of every version: it names all that there is."""
_OF_A_START = frozenset(
    {LOCK, SERVERS_LOCK, REGISTRATION, CONFIG, MARKS, MEMBERS, RUN, ERROR, FLOWER_LOG, LOG, TENSORBOARD, WAITING}
)
"""What a run has before its first round is over. A run that ends there has computed nothing, and may begin again."""

_NAMED = 5  # runs in one line


def alone_in_run(directory: Path) -> AbstractContextManager[None]:
    """Keep other processes from running what a run's directory holds; the directory is made if it is not there.

    Raises:
        SpatlError: Another process runs it, or it cannot be made.
    """
    return _locked(directory, LOCK, otherwise=f"another process is running {directory}; wait for it, or stop it")


def serving_run(directory: Path) -> AbstractContextManager[None]:
    """Keep other servers from a deployment's run, while clients are waited for too (errors as of `alone_in_run`)."""
    return _locked(directory, SERVERS_LOCK, otherwise=f"another process serves {directory}; wait for it, or stop it")


@contextmanager
def _locked(directory: Path, lock: str, *, otherwise: str) -> Iterator[None]:
    """Take one of the locks of a run's directory, which is made; `otherwise` is said where another process has it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpatlError(f"cannot make the run's directory {directory}: {error.strerror}") from error
    with alone_in(directory / lock, otherwise=SpatlError(otherwise)):
        yield


def is_running(directory: Path) -> bool:
    """Return whether a process of this machine runs what a run's directory holds; Windows does not tell."""
    return any(is_locked(directory / name) for name in (LOCK, SERVERS_LOCK))


def has_rounds(directory: Path) -> bool:
    """Return whether a round of a run is over, or the run has ended."""
    history = directory / HISTORY
    ended = any((directory / name).exists() for name in (SUMMARY, CHECKPOINT))
    return ended or (history.exists() and bool(read_lines(history)))


def clear_start(directory: Path) -> bool:
    """Make room for a run where one was begun that has no round; return whether nothing else is there.

    Logs stay. A directory of other files is left alone, and so is one that another process is about to run.
    """
    names = _names_in(directory)
    if not names <= _OF_A_START or not names & {LOCK, SERVERS_LOCK}:
        return not names
    with suppress(_Busy), alone_in(directory / LOCK, otherwise=_Busy()):
        if _names_in(directory) <= _OF_A_START:  # still: it may have been run to its end meanwhile
            for name in (CONFIG, MARKS, MEMBERS, ERROR, REGISTRATION, WAITING):
                (directory / name).unlink(missing_ok=True)
            return True
    return False


class _Busy(SpatlError):
    """Another process runs what a directory holds."""


def _names_in(directory: Path) -> set[str]:
    """Return the names of a directory's files, of halfway written ones too."""
    return {path.name.removesuffix(".tmp") for path in directory.iterdir()}


def config_of(directory: Path) -> ExperimentConfig:
    """Return the config of a run.

    Raises:
        SpatlError: The directory holds none, or not the whole of it.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise ConfigError(f"{directory} holds no run{_instead(directory)}: {path.name} is not there")
    try:
        read_marked(directory, CONFIG)
    except OSError as error:
        raise SpatlError(f"cannot read {path}: {error.strerror}") from error
    values = read_config(path)
    if lacking := [key for key in _OF_EVERY_RUN if key not in values]:
        raise DamagedState(
            f"{path} is not a run's whole config: it lacks {', '.join(lacking)}; put it back from a copy"
        )
    return load_config(path)


def write_config(directory: Path, config: ExperimentConfig) -> None:
    """Put a run's config in the place of the one before, whose rounds it goes on with."""
    replace_marked(directory, CONFIG, config.to_yaml().encode())


def _instead(directory: Path) -> str:
    """Return what is at the place where a run was looked for, where that helps."""
    if not directory.exists():
        close = sorted(path.parent.name for path in directory.parent.glob(f"*/{CONFIG}"))
        there = f"; runs beside it: {', '.join(close[:_NAMED])}" if close else ""
        return f" to resume, for it is not there{there}"
    return " to resume"


def fresh_directory(directory: str | Path | None, *, name: str) -> Path:
    """Return the directory of a run: the one given, not made yet, or one below `runs/` with a name and the time.

    The latter is made at once, and is this caller's alone: of those that start in one second each gets its own. One in
    which a run was begun that never got to the end of a round may be taken again.

    Raises:
        SpatlError: It holds something already, or cannot be looked into or made.
    """
    if directory is None:
        return _numbered_directory((Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}").absolute())
    path = Path(directory).absolute()
    try:
        taken = path.exists() and (not path.is_dir() or not clear_start(path))
    except OSError as error:
        raise SpatlError(f"cannot use {path} for this run: {error.strerror}") from error
    if taken:
        raise ConfigError(f"{path} is already there and not empty; choose another directory for this run (--out)")
    return path


def _numbered_directory(path: Path) -> Path:
    """Make a directory that nobody else has made: the one named, or the first that is free of `NAME-2`, `NAME-3`..."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
            with contextlib.suppress(FileExistsError):
                candidate.mkdir()
                return candidate
    except OSError as error:
        raise SpatlError(f"cannot make the run's directory {path}: {error.strerror}") from error
    raise AssertionError("counting never ends")
