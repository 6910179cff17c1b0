"""Marks of a run: how long each file of its record was after a round, and digests of all that it goes on from.

The record (`history.jsonl` and its like) grows by lines, and what befalls its files between two starts is not seen in
them: a line may be lost, doubled or cut, and sums over the rounds are then quietly wrong. A checkpoint knows how far
the run has come; its marks say what the record was by then. What stands behind them was written after it and goes; what
is missing before them is not replaced by anything. Of files that are replaced whole, the config and the summary, the
marks have the digest.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from spatl.disk.writing import replace_file
from spatl.errors import DamagedState, SpatlError
from spatl.json_files import read_json, to_json, write_json
from spatl.runs.files import CHECKPOINT, CHECKPOINT_BEFORE, CLIENTS, HISTORY, LEDGER, MARKS, SELECTIONS, TIMINGS
from spatl.runs.records import keep_rounds, read_lines, read_rounds

logger = logging.getLogger(__name__)

RECORD: Final = (HISTORY, CLIENTS, LEDGER, TIMINGS, SELECTIONS)
"""Files of the record, whose lines each belong to a round."""
KEPT: Final = 3
"""Rounds whose marks are kept: of one without a checkpoint yet, that of the last one, and that of the one before."""
_PIECE_BYTES: Final = 2**20
_ATTEMPTS, _AGAIN_SECONDS = 3, 0.2


@dataclass(frozen=True)
class Mark:
    """Mark of a file.

    Attributes:
        num_bytes: How long it was.
        digest: BLAKE2b-128 of them, hexadecimal.
    """

    num_bytes: int
    digest: str


@dataclass(frozen=True)
class Marks:
    """Marks of a run, as they stand in its directory.

    Attributes:
        files: The digests that each file which is replaced whole may have: two while it is, one otherwise.
        rounds: By round, of each file of the record.
    """

    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rounds: Mapping[int, Mapping[str, Mark]] = field(default_factory=dict)


class Record:
    """The files of a run's record as they grow, with a digest of each.

    Args:
        directory: The run's.
        ends: How long each file is to be by now; what stands behind is cut off.
    """

    def __init__(self, directory: Path, ends: Mapping[str, int]) -> None:
        self._ends = {name: ends.get(name, 0) for name in RECORD}
        self._digests = {name: _cut(directory / name, end) for name, end in self._ends.items()}

    def grow(self, name: str, data: bytes) -> None:
        """Take note of bytes that were appended to a file."""
        self._ends[name] += len(data)
        self._digests[name].update(data)

    def marks(self) -> dict[str, Mark]:
        """Return the marks of all files as they are."""
        return {name: Mark(self._ends[name], self._digests[name].hexdigest()) for name in RECORD}


def record_of(directory: Path, done: int, marks: Mapping[str, Mark] | None) -> Record:
    """Return the record of a run that goes on, or begins, with what was written of later rounds cut off.

    Args:
        directory: The run's.
        done: The last round that is over; 0 for a run that begins.
        marks: Of that round, as `checked_marks` returns them; None where there are none.

    Raises:
        DamagedState: There are none, and the lines are not those of the rounds.
    """
    if marks is not None:
        forget_marks(directory, after=done)  # first: what stands in the marks is in the record, at any time
        return Record(directory, {name: mark.num_bytes for name, mark in marks.items()})
    for name in RECORD:
        keep_rounds(directory / name, done)
    if done and (number := len(read_rounds(directory / HISTORY))) != done:
        raise DamagedState(f"{directory / HISTORY} has {number} rounds, and the checkpoint is of round {done}")
    paths = {name: directory / name for name in RECORD}
    return Record(directory, {name: path.stat().st_size for name, path in paths.items() if path.exists()})


def write_marks(directory: Path, server_round: int, marks: Mapping[str, Mark]) -> None:
    """Write the marks of a round, before its checkpoint; those of the rounds before stay."""
    known = _read(directory)
    kept = {number: each for number, each in known.rounds.items() if server_round - KEPT < number < server_round}
    _write(directory, replace(known, rounds={**kept, server_round: dict(marks)}))


def forget_marks(directory: Path, *, after: int) -> None:
    """Drop the marks of rounds that will be done again, before the record is cut."""
    known = _read(directory)
    if any(number > after for number in known.rounds):
        kept = {number: each for number, each in known.rounds.items() if number <= after}
        _write(directory, replace(known, rounds=kept))


def replace_marked(directory: Path, name: str, data: bytes) -> None:
    """Put a new file in the place of an old one, as `replace_file`, and its digest among the marks."""
    known, digest = _read(directory), _digest(data)
    # Whatever is killed in between leaves a file whose digest is there.
    _write(directory, replace(known, files={**known.files, name: (*known.files.get(name, ())[-1:], digest)}))
    replace_file(directory / name, data)
    _write(directory, replace(known, files={**known.files, name: (digest,)}))


def remove_marked(directory: Path, name: str) -> None:
    """Remove a file that `replace_marked` wrote, and its mark."""
    known = _read(directory)
    if name in known.files:
        _write(directory, replace(known, files={other: each for other, each in known.files.items() if other != name}))
    (directory / name).unlink(missing_ok=True)


def marked_files(directory: Path) -> set[str]:
    """Return the names of the files that are replaced whole, as the marks have them."""
    return set(_read(directory).files)


def read_marked(directory: Path, name: str) -> bytes:
    """Return a file that `replace_marked` wrote; one without a mark as it is.

    Raises:
        FileNotFoundError: It is not there.
        DamagedState: It is another than the run left.
    """
    for attempt in range(_ATTEMPTS):
        data = (directory / name).read_bytes()
        allowed = _read(directory).files.get(name)
        if allowed is None or _digest(data) in allowed:
            return data
        time.sleep(_AGAIN_SECONDS * attempt)  # a run that is under way may just have replaced it
    raise DamagedState(
        f"{directory / name} is not as the run left it: put it back from a copy; or, if it was changed on purpose, "
        f"delete {MARKS} to go on with it as it is"
    )


def read_so_far(directory: Path, name: str) -> bytes:
    """Return a file of the record as far as it is marked, checked; all of it where there are no marks.

    Raises:
        DamagedState: Something of it is missing or another.
    """
    path = directory / name
    for attempt in range(_ATTEMPTS):
        rounds = _read(directory).rounds
        if not rounds:
            return path.read_bytes() if path.exists() else b""
        last = max(rounds)
        mark = rounds[last].get(name, Mark(0, ""))
        try:
            _check(path, mark, last)
            return path.read_bytes()[: mark.num_bytes] if mark.num_bytes else b""
        except DamagedState:
            if attempt + 1 == _ATTEMPTS:
                raise
            time.sleep(_AGAIN_SECONDS * attempt)  # a run that goes on may just have cut it
    raise AssertionError("the last attempt returns or raises")


def check_without_checkpoint(directory: Path) -> None:
    """Raise unless a run without a checkpoint is one that has begun, and lost nothing by beginning again.

    Raises:
        DamagedState: Its record has rounds that only a checkpoint can go on from.
    """
    rows = read_lines(directory / HISTORY)
    if len(rows) > 1 or (directory / CHECKPOINT_BEFORE).exists():
        raise DamagedState(
            f"{directory} has {len(rows)} rounds on record and no {CHECKPOINT}, from which a run goes on; put it back "
            f"from a copy{_before(directory)}, or start a run in another directory"
        )


def _before(directory: Path) -> str:
    path = directory / CHECKPOINT_BEFORE
    return f", or take the one of the round before (mv {path} {directory / CHECKPOINT})" if path.exists() else ""


def checked_marks(directory: Path, server_round: int) -> dict[str, Mark] | None:
    """Check the record of a run against a round that is over, and return its marks; nothing is written.

    Args:
        directory: The run's.
        server_round: The round of its checkpoint.

    Returns:
        The marks; None for a run of a version that left none, of which lines are checked one by one instead.

    Raises:
        DamagedState: Something of the record is missing or another, with the file, the line where that can be told,
            and what to do.
    """
    known = _read(directory).rounds
    if not known:
        return None
    marks = known.get(server_round)
    if marks is None:
        raise DamagedState(
            f"{directory / MARKS} has no marks of round {server_round}, after which the run would go on; if you are "
            f"sure that the record is whole, delete {MARKS} and resume"
        )
    for name, mark in marks.items():
        _check(directory / name, mark, server_round)
    return dict(marks)


def check_finished(directory: Path, names: Iterable[str] = RECORD) -> None:
    """Raise unless files of the record of a run that is over are as it left them; one without marks is not checked.

    Args:
        directory: The run's.
        names: Of the files, from `RECORD`.

    Raises:
        DamagedState: One of them is another, or is not there.
    """
    known = _read(directory).rounds
    if not known:
        return
    last = max(known)
    for name in names:
        mark = known[last].get(name, Mark(0, ""))
        _check(directory / name, mark, last)
        if mark.num_bytes and (over := (directory / name).stat().st_size - mark.num_bytes):
            raise DamagedState(_told(directory / name, last, f"it has {over} bytes more"))


def _check(path: Path, mark: Mark, server_round: int) -> None:
    try:
        with path.open("rb") as file:
            digest, left = _digest_of(file, mark.num_bytes)
    except FileNotFoundError:
        if not mark.num_bytes:
            return
        raise DamagedState(_told(path, server_round, "it is not there")) from None
    except OSError as error:
        raise SpatlError(f"cannot read {path}: {error.strerror}") from error
    if left or digest.hexdigest() != mark.digest:
        raise DamagedState(_told(path, server_round, _fault(path, mark, server_round)))


def _told(path: Path, server_round: int, fault: str) -> str:
    return (
        f"{path} is not what it was after round {server_round}: {fault}. Put the file back from a copy; or delete "
        f"{MARKS} to go on with the record as it is, whose sums are then those of what is left"
    )


def _fault(path: Path, mark: Mark, server_round: int) -> str:
    """Return what is wrong with a file, as near as its lines tell."""
    data = path.read_bytes()
    before = 0
    for number, line in enumerate(data[: mark.num_bytes].split(b"\n"), start=1):
        if not line:
            if data[: mark.num_bytes].count(b"\n") >= number:
                return f"line {number} is blank"
            break
        row = _row_of(line)
        if row is None:
            return f"line {number} is no line of it"
        if not before <= row <= min(server_round, before + 1) or (path.name == HISTORY and row != before + 1):
            return f"line {number} is of round {row}, after one of round {before}"
        before = row
    if len(data) < mark.num_bytes:
        return f"it has {len(data)} bytes of {mark.num_bytes}"
    return "its bytes are others"


def _row_of(line: bytes) -> int | None:
    try:
        row = json.loads(line)["round"]
    except (ValueError, KeyError, TypeError):
        return None
    return row if type(row) is int else None


def _digest_of(file: BinaryIO, number: int) -> tuple["hashlib.blake2b", int]:
    """Return the digest of the next bytes of a file, and how many of so many are not there."""
    digest, left = hashlib.blake2b(digest_size=16), number
    while left and (piece := file.read(min(left, _PIECE_BYTES))):
        digest.update(piece)
        left -= len(piece)
    return digest, left


def _cut(path: Path, end: int) -> "hashlib.blake2b":
    """Cut a file to so many bytes, where it is longer, and return the digest of what stays."""
    if not path.exists():
        return hashlib.blake2b(digest_size=16)
    with path.open("r+b") as file:
        digest, _ = _digest_of(file, end)
        if (over := file.seek(0, os.SEEK_END) - end) > 0:
            logger.warning("%s: %d bytes that were written after the last checkpoint are cut off", path, over)
            file.truncate(end)
            file.flush()
            os.fsync(file.fileno())
    return digest


def _read(directory: Path) -> Marks:
    """Return the marks of a run; none where there is no such file."""
    path = directory / MARKS
    try:
        content: dict[str, Any] = read_json(path)
        if content.pop("digest") != _digest(to_json(content).encode()):
            raise ValueError("its digest is not as written")
        files = {str(name): tuple(map(str, digests)) for name, digests in content["files"].items()}
        rounds = {
            int(number): {str(name): Mark(int(length), str(digest)) for name, (length, digest) in each.items()}
            for number, each in content["rounds"].items()
        }
    except FileNotFoundError:
        return Marks()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedState(
            f"{path} is damaged: {type(error).__name__}; put it back from a copy, or delete it to go on without its "
            "checks"
        ) from error
    return Marks(files, rounds)


def _write(directory: Path, marks: Marks) -> None:
    content: dict[str, Any] = {
        "files": {name: list(digests) for name, digests in marks.files.items()},
        "rounds": {
            str(number): {name: [mark.num_bytes, mark.digest] for name, mark in each.items()}
            for number, each in sorted(marks.rounds.items())
        },
    }
    write_json(directory / MARKS, {**content, "digest": _digest(to_json(content).encode())})


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
