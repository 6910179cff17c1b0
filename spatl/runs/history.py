"""What a run leaves behind, line by line: history, clients, ledger, summary (DESIGN 7)."""

import base64
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from spatl.errors import SpatlError
from spatl.report.page import facts
from spatl.runs.text import human_bytes, human_percent
from spatl.sealed_files import alone_in, replace_file

_LOCK = ".lock"
_SERVERS_LOCK = ".server.lock"
REGISTRATION = "registration.json"
"""Who takes part in a deployment's run (`num_examples` by client), and who does not (`absent`: why, by client)."""
_OF_A_START = frozenset(
    {
        _LOCK, _SERVERS_LOCK, REGISTRATION, "config.yaml", "deployment.json", "error.json", "flower.log", "log.jsonl",
        "tensorboard",
    }
)  # fmt: skip
"""What a run has before its first round is over. A run that ends there has computed nothing, and may begin again."""
_NAMED = 5  # clients in one line
NOTABLE_SHARE = 0.1
"""A run says so where the clients that it refused or left out hold more than this share of all training examples."""


@dataclass(frozen=True)
class ClientRow:
    """One client in one round: an object of `clients.jsonl`.

    A client that only registered (round 1) or only received the final encoder (last round) has a row as well, so that
    the bytes of all rows are the bytes of the run; what it did not do is null. `missed` says that it was asked to train
    and no answer came in time.
    """

    round: int
    client: int
    participated: bool
    missed: bool
    accuracy: float | None
    loss: float | None
    train_loss: float | None
    num_examples: int
    keep_ratio: float | None
    flops_ratio: float | None
    budget_kind: str | None
    budget_limit: float | None
    validation_gain: float | None
    uplink_bytes: int
    downlink_bytes: int
    seconds: float | None
    rejected: str | None = None
    final_accuracy: float | None = None
    final_loss: float | None = None


@dataclass(frozen=True)
class HistoryRow:
    """One round: an object of `history.jsonl`.

    `accuracy` and `loss` are means over the round's participants of the encoder as it arrived, before training.
    `uplink` and `downlink` break the bytes down into values, indices, control and other. `left_out` names the clients
    that were not asked because they had failed too often, `late` counts replies that came after their round or that
    nobody asked for; they are dropped. A `skipped` round had too few usable replies and changed nothing. The last round
    also carries `final_*`: all clients with the encoder after the last round.
    """

    round: int
    accuracy: float | None
    accuracy_min: float | None
    loss: float | None
    train_loss: float | None
    participants: int
    rejected: int
    missing: int
    keep_ratio: float | None
    flops_ratio: float | None
    uplink_bytes: int
    downlink_bytes: int
    uplink: Mapping[str, int]
    downlink: Mapping[str, int]
    encoder_fingerprint: str
    validation_gain: float | None
    seconds: float
    rejections: tuple[Mapping[str, Any], ...] = ()
    left_out: tuple[int, ...] = ()
    late: int = 0
    skipped: bool = False
    final_accuracy: float | None = None
    final_accuracy_min: float | None = None
    final_loss: float | None = None


@dataclass(frozen=True)
class TimingRow:
    """Where one client's time went in one round: an object of `timings.jsonl`.

    Apart from the other files, because time is what a repeated run does not repeat.
    """

    round: int
    client: int
    training_seconds: float
    selection_seconds: float
    decision_seconds: float


@dataclass(frozen=True, repr=False)
class RunResult:
    """A finished run, read from its directory.

    Attributes:
        directory: Where everything lies.
        summary: The object of `summary.json`.
        history: The objects of `history.jsonl`.
        clients: The objects of `clients.jsonl`.
        alone: The summary of the same clients training alone, if that was asked for.
    """

    directory: Path
    summary: dict[str, Any]
    history: list[dict[str, Any]]
    clients: list[dict[str, Any]]
    alone: dict[str, Any] | None = None

    def __repr__(self) -> str:
        """What came out, in one line."""
        outcome = ", ".join(f"{name} {value}" for name, value in self._outcome())
        return f"<{type(self).__name__} {self._title()}: {outcome}; {self.directory}>"

    def _repr_html_(self) -> str:
        """What came out, as a notebook shows it: a table, and the curves where they were drawn."""
        shown = facts([("", self._title()), *self._outcome(), ("files", str(self.directory))])
        curves = self.directory / "curves.png"
        if not curves.is_file():
            return shown
        data = base64.b64encode(curves.read_bytes()).decode("ascii")
        return f'{shown}\n<img alt="curves of the run" style="max-width: 100%" src="data:image/png;base64,{data}">'

    def _title(self) -> str:
        summary = self.summary
        name = str(summary.get("title") or summary["method"])
        clients = f", {summary['num_clients']} clients" if "num_clients" in summary else ""
        return f"{name} on {summary['data']}{clients}" if "data" in summary else f"{name}{clients}"

    def _outcome(self) -> list[tuple[str, str]]:
        summary = self.summary
        rows = [
            ("rounds", str(summary["rounds"])),
            ("accuracy", human_percent(summary["accuracy"])),
            ("worst client", human_percent(summary["accuracy_min"])),
            ("up", human_bytes(summary["uplink_bytes"])),
            ("down", human_bytes(summary["downlink_bytes"])),
        ]
        return rows + ([("training alone", human_percent(self.alone.get("accuracy")))] if self.alone else [])


def excluded_line(summary: Mapping[str, Any]) -> str | None:
    """What a run says of the clients that it refused or left out; None where they hold little.

    Args:
        summary: The object of `summary.json`.
    """
    share = summary.get("excluded_examples_share", 0.0)
    if not share > NOTABLE_SHARE:
        return None
    most = sorted(summary["excluded_by_client"].items(), key=lambda item: (-item[1], int(item[0])))
    named = [f"client {client} in {number} of {summary['rounds']} rounds" for client, number in most[:_NAMED]]
    who = ", ".join(named) + (f" and {len(most) - _NAMED} more" if len(most) > _NAMED else "")
    return (
        f"clients that hold {100 * share:.1f} % of all training examples were refused or left out: {who}; "
        "history.jsonl says why"
    )


def mean(values: Iterable[float]) -> float | None:
    """The arithmetic mean, the same in any order, or None of nothing."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if numbers else None


def latest_accuracy(row: Mapping[str, Any]) -> float | None:
    """A round's accuracy of all clients after the last round, where it was measured (0 is a value), or on arrival."""
    final: float | None = row.get("final_accuracy")
    arrival: float | None = row.get("accuracy")
    return arrival if final is None else final


def to_json(content: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """Write JSON as every program reads it: a number that is not finite, which JSON does not have, is null."""
    return json.dumps(_finite(content), indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    return [_finite(each) for each in content] if isinstance(content, list | tuple) else content


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append one JSON object per line, and wait until the disk has them."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(to_json(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def keep_rounds(path: Path, last: int) -> list[dict[str, Any]]:
    """Cut a JSON-lines file, in its place, after the whole lines of the rounds up to `last`, and return these."""
    if not path.exists():
        return []
    rows, kept = [], 0
    with path.open("r+b") as file:
        for line in file:
            row = json.loads(line) if line.endswith(b"\n") else None
            if row is None or row["round"] > last:
                break
            rows.append(row)
            kept += len(line)
        if kept != file.seek(0, os.SEEK_END):
            file.truncate(kept)
            file.flush()
            os.fsync(file.fileno())
    return rows


class Tail:
    """Reads a growing JSON-lines file of rounds, each time from where it stopped.

    Args:
        path: The file, which may come to be later.

    Attributes:
        bytes_read: How many bytes were read so far.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end = 0
        self._last = b""
        self.bytes_read = 0

    def new_rows(self) -> list[dict[str, Any]]:
        """The rows of the lines that are whole and were not there before.

        A run that goes on cuts what a killed one wrote last. If the last line that was read is not there any more, the
        rows of its round and of later ones are new.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._end - len(self._last))
                data = self._read(file)
                if data.startswith(self._last):
                    return self._rows(data, len(self._last))
                again = json.loads(self._last)["round"]
                self._end, self._last = 0, b""
                file.seek(0)
                return [row for row in self._rows(self._read(file), 0) if row["round"] >= again]
        except FileNotFoundError:
            return []

    def _read(self, file: BinaryIO) -> bytes:
        data = file.read()
        self.bytes_read += len(data)
        return data

    def _rows(self, data: bytes, start: int) -> list[dict[str, Any]]:
        whole = data[start : data.rfind(b"\n") + 1]
        lines = whole.split(b"\n")[:-1]
        self._end += len(whole)
        self._last = lines[-1] + b"\n" if lines else self._last
        return [json.loads(line) for line in lines]


def write_json(path: Path, content: Any) -> None:
    """Write JSON to a temporary name, then rename."""
    replace_file(path, (to_json(content, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the whole lines of a JSON-lines file; a last line still being written is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"]


@contextmanager
def alone_in_run(directory: Path) -> Iterator[None]:
    """Keep other processes from running what a run's directory holds; the directory is made if it is not there.

    Raises:
        SpatlError: Another process runs it, or it cannot be made.
    """
    with _holding(directory, _LOCK, otherwise=f"another process is running {directory}; wait for it, or stop it"):
        yield


@contextmanager
def serving_run(directory: Path) -> Iterator[None]:
    """Keep other servers from a deployment's run, while clients are waited for too; the directory is made.

    Raises:
        SpatlError: Another process has it, or it cannot be made.
    """
    with _holding(directory, _SERVERS_LOCK, otherwise=f"another process serves {directory}; wait for it, or stop it"):
        yield


@contextmanager
def _holding(directory: Path, lock: str, *, otherwise: str) -> Iterator[None]:
    """Hold one of the locks of a run's directory, which is made; `otherwise` is said where another process has it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpatlError(f"cannot make the run's directory {directory}: {error.strerror}") from error
    with alone_in(directory / lock, otherwise=SpatlError(otherwise)):
        yield


def is_running(directory: Path) -> bool:
    """Whether a process of this machine runs what a run's directory holds; Windows does not tell."""
    return any(_is_taken(directory / name) for name in (_LOCK, _SERVERS_LOCK))


def _is_taken(lock: Path) -> bool:
    if not lock.exists():
        return False
    try:
        with alone_in(lock, otherwise=_Taken()):
            return False
    except _Taken:
        return True


def has_rounds(directory: Path) -> bool:
    """Whether a run has got anywhere: a round is over, or it has ended."""
    history = directory / "history.jsonl"
    ended = any((directory / name).exists() for name in ("summary.json", "server.checkpoint"))
    return ended or (history.exists() and bool(read_lines(history)))


def clear_start(directory: Path) -> bool:
    """Make room for a run where one was begun that has no round; return whether nothing else is there.

    Logs stay. A directory of other files is left alone, and so is one that another process is about to run.
    """
    names = {path.name.removesuffix(".tmp") for path in directory.iterdir()}
    if not names <= _OF_A_START or not names & {_LOCK, _SERVERS_LOCK} or _is_taken(directory / _LOCK):
        return not names
    for name in ("config.yaml", "error.json", REGISTRATION):
        (directory / name).unlink(missing_ok=True)
    return True


class _Taken(SpatlError):
    """The lock is another process's."""


def read_run(directory: str | Path) -> RunResult:
    """Read a finished run.

    Raises:
        SpatlError: The directory holds none.
    """
    directory = Path(directory)
    path = directory / "summary.json"
    if not path.exists():
        raise SpatlError(f"{directory} holds no finished run: {path.name} is not there")
    alone = directory / "alone" / "summary.json"
    return RunResult(
        directory=directory,
        summary=read_json(path),
        history=read_lines(directory / "history.jsonl"),
        clients=read_lines(directory / "clients.jsonl"),
        alone=read_json(alone) if alone.exists() else None,
    )
