"""Exceptions that a user or a peer can cause; everything else is a bug and keeps its traceback.

SpatlError
├── ConfigError        a key, a value or a combination of settings
├── DataError          a data set that is missing or a partition that cannot be drawn
├── ModelError         a model that cannot be built, or a cut that does not fit it
├── BudgetError        a budget no selection can meet
├── UpdateRejected     a blob that is malformed, stale or not finite
│   └── ReferenceLost  changes of an encoder that the receiver does not hold
├── DamagedState       a stored file that is not as it was written
├── NotAllowed         what a device's owner does not let a run do
│   └── NotNow          what the owner does not let it do at this time
├── SystemFault        a disk that is full, a folder that is gone: what the system refuses
└── DivergedError      training that left the finite numbers
"""

import difflib
import errno
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from types import FrameType


class SpatlError(Exception):
    """Error that the reader of its message can put right; base of all others."""


class ConfigError(SpatlError):
    """Error of a key, a value or a combination of settings that is not allowed."""


class DataError(SpatlError):
    """Error of a data set that is not there, or a partition that cannot be drawn from it."""


class ModelError(SpatlError):
    """Error of a model that cannot be built, or a cut that does not fit it."""


class BudgetError(SpatlError):
    """Error of a budget below the cost of the smallest possible selection."""


class UpdateRejected(SpatlError):
    """Refusal of a received blob; the message is the reason that is shown and counted."""


class ReferenceLost(UpdateRejected):
    """Loss of the encoder: changes start from a version that the receiver does not have, or lead elsewhere."""


class ControlLost(UpdateRejected):
    """Loss of a client's control variate: it does not have the c_i that the server's c contains."""


class StateBusy(SpatlError):
    """Use of a client's state by another process, which is at work on it."""


class DamagedState(SpatlError):
    """Damage of stored bytes: they are not as they were written."""


class NotAllowed(SpatlError):
    """Refusal of a run by the owner of a device; the message names the setting, what was asked, and what is allowed."""

    @classmethod
    def of(cls, setting: str, asked: object, allowed: object) -> "NotAllowed":
        """Make the one line that the device's owner and the server see."""
        return cls(
            f"{setting}: this run asks for {in_short(asked)}, the owner of this device allows {in_short(allowed)}"
        )


class NotRegistered(NotAllowed):
    """Refusal of work for a run that a device knows nothing of: it has not registered, or its state was emptied."""


class NotNow(NotAllowed):
    """Refusal that passes with time: the hour, the battery, the rounds of a day."""


class SystemFault(SpatlError):
    """Fault of the machine: it refuses to write or to read, for a reason that is no mistake of this program."""


class DivergedError(SpatlError):
    """Divergence of a run: its loss or weights are no longer finite."""


_GO_ON = "; then go on with the run in "


def going_on(fault: str, directory: PurePath) -> str:
    """Return the line about a fault of the machine in a run: what it is and asks for, and how the run goes on then."""
    return f"{fault}{_GO_ON}{directory} (--resume)"


def without_going_on(line: str) -> str:
    """Return such a line about a run of which nothing is kept: without how it goes on. Any other line is as it was."""
    return line.partition(_GO_ON)[0]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the part of a message that suggests the known name closest to a wrong one; empty if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


_NO_MEMORY = ("can't allocate memory", "out of memory")
_FAULTS = {
    errno.ENOSPC: "no space is left on the disk: make room",
    errno.EDQUOT: "the quota of the disk is used up: make room, or have it raised",
    errno.EFBIG: "the file may not grow any further: raise the limit of file sizes (ulimit -f)",
    errno.EROFS: "the file system is read-only: mount it for writing",
    errno.EACCES: "no permission: change the owner or the rights",
    errno.EPERM: "no permission: change the owner or the rights",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine: close some",
    errno.EIO: "the disk fails: look at the system's log",
    errno.ENOENT: "it is gone: put it back",
    errno.ENOTDIR: "a folder on its way is gone: put it back",
    errno.ENAMETOOLONG: "the name is too long: give a shorter one",
    errno.ELOOP: "links lead in a circle: remove one",
    errno.ESTALE: "the network's disk is gone: connect it again",
}


def system_fault(error: BaseException) -> str | None:
    """Return what the system refused, and what to do, in one line; None of an exception of another kind.

    Only where the exception did not come through code of the user's own: that one may mean anything by it.
    """
    if not isinstance(error, OSError) or error.errno not in _FAULTS or _users_frame(error) is not None:
        return None
    names = [printable(str(each)) for each in (error.filename, error.filename2) if each is not None]
    if not names and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM):
        return None  # nobody could do anything about it
    return f"{names[0] if names else 'a file'}: {_FAULTS[error.errno]}"


def lacks_memory(error: BaseException | None) -> bool:
    """Return whether an exception, or what caused it, is that there is no more memory: Python's, or PyTorch's."""
    while error is not None:
        if isinstance(error, MemoryError) or (
            isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
        ):
            return True
        error = error.__cause__
    return False


@contextmanager
def naming(path: PurePath) -> Iterator[None]:
    """Have an `OSError` of the block name a file, where it names none, as one of writing never does."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def told(error: BaseException) -> str:
    """Return one line on an exception of anybody's code: its type, the first line of its message, and where it arose.

    The place is the innermost one outside of Python, PyTorch, Flower and this package; the innermost of this package
    where there is none.

    Example:
        >>> told(error)
        'RuntimeError: mat1 and mat2 shapes cannot be multiplied (32x64 and 128x10) (my_net.py:42, in forward)'
    """
    if isinstance(error, SpatlError):
        return str(error)
    if (fault := system_fault(error)) is not None:
        return fault
    if isinstance(error, SyntaxError) and error.filename:  # the place is the message's own
        return f"{type(error).__name__}: {error.msg} ({PurePath(error.filename).name}:{error.lineno})"
    message = _first_line(str(error))
    place = _place(error)
    return f"{type(error).__name__}{f': {message}' if message else ''}{f' ({place})' if place else ''}"


def traceback_of(error: BaseException) -> str:
    """Return the traceback of an exception with all its causes, at most some 15,000 characters of it."""
    text = printable("".join(traceback.format_exception(error)))
    half = _LONGEST_TRACEBACK // 2
    return text if len(text) <= _LONGEST_TRACEBACK else f"{text[:half]}\n[...]\n{text[-half:]}"


def from_outside(error: BaseException) -> bool:
    """Return whether an exception, or its cause, comes from code that is not ours, so that its traceback tells more.

    So does a note, which is a traceback of another process. What the system refuses (`system_fault`) needs none.
    """
    if system_fault(error) is not None:
        return False
    if not isinstance(error, SpatlError) or getattr(error, "__notes__", []):
        return True
    cause = error.__cause__
    if cause is None:
        return False
    if isinstance(cause, SpatlError):
        return from_outside(cause)
    return isinstance(error, ModelError) or (
        isinstance(error, DataError | ConfigError) and _users_frame(cause) is not None
    )


def printable(text: str) -> str:
    """Return a text of somebody else's without what moves a terminal's cursor; its lines and tabs stay."""
    return _CONTROL.sub("?", text)


def in_short(value: object) -> str:
    """Write a value that may be anybody's in a line."""
    text = " ".join(printable(str(value)).split())
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


_LONGEST_VALUE = 160
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST_LINE = 300
_LONGEST_TRACEBACK = 15_000
_OURS = frozenset({"agents", "clients", "server", "spatl"})
_LIBRARIES = frozenset(
    {"flwr", "numpy", "PIL", "pydantic", "ray", "rich", "safetensors", "torch", "torch_pruning", "yaml"}
)


def _first_line(message: str) -> str:
    lines = [line.strip() for line in printable(message).splitlines() if line.strip()]
    line = lines[0] if lines else ""
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."


def _place(error: BaseException) -> str:
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return ""
    ours = [each for each in frames if _package(each) in _OURS]
    frame, line = _users_frame(error) or (ours or frames)[-1]
    return f"{PurePath(frame.f_code.co_filename).name}:{line}, in {frame.f_code.co_name}"


def _users_frame(error: BaseException) -> tuple[FrameType, int] | None:
    """Return the innermost place of an exception that is in the user's own code."""
    others = _OURS | _LIBRARIES | sys.stdlib_module_names
    found = [each for each in traceback.walk_tb(error.__traceback__) if _package(each) not in others]
    return found[-1] if found else None


def _package(place: tuple[FrameType, int]) -> str:
    return str(place[0].f_globals.get("__name__", "")).partition(".")[0]
