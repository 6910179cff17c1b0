"""Records of a run, round by round and client by client, as lines of JSON; and what follows from a few of them."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from spatl.errors import DamagedState, naming
from spatl.json_files import to_json
from spatl.runs.scores import score_in

_NAMED = 5  # clients in one line

NOTABLE_SHARE = 0.1
"""A run says so where the clients that it refused or left out hold more than this share of all training examples."""


@dataclass(frozen=True)
class ClientRow:
    """Line of `clients.jsonl`: one client in one round.

    A client that only registered (round 1) or only received the final encoder (last round) has a row as well, so that
    the bytes of all rows are the bytes of the run; what it did not do is null. `missed` says that it was asked to train
    and no answer came in time, `away` that it was not even connected, `error` that it answered with an error, whose
    reason is in `rejected`. `asked_again` counts the copies of questions that it was sent. `cosine` is that of its
    update with the sum of the other participants', on what it sent. `owner` is the name of whose data it has, where the
    partition knows it. Of a task that is not judged by accuracy, that is null, and `score` has its first metric;
    `metrics` has all of them, by name. A line of a classification by accuracy alone has none of these keys.
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
    cosine: float | None = None
    final_accuracy: float | None = None
    final_loss: float | None = None
    away: bool = False
    error: bool = False
    asked_again: int = 0
    owner: str | None = None
    score: float | None = None
    final_score: float | None = None
    metrics: Mapping[str, float | None] | None = None
    final_metrics: Mapping[str, float | None] | None = None


@dataclass(frozen=True)
class HistoryRow:
    """Line of `history.jsonl`: one round.

    `accuracy` and `loss` are means over the round's participants of the encoder as it arrived, before training.
    `uplink` and `downlink` break the bytes down into values, indices, control and other. Of the `missing`, `away` were
    not connected; of the `rejected`, `errors` had answered with an error. `left_out` names the clients that were not
    asked because they had failed too often, `late` counts replies that came after their round or that nobody asked
    for, and `duplicates` second replies to a question that was `asked_again`; they are dropped. A `skipped` round had
    too few usable replies and changed nothing. `forgot` names the clients that had not the control variate that the
    server's contains, and a round with `control_anew` began with all of them at 0 for that. `joined` names clients that
    came to a deployment before the round, `retired` those that were taken out. The last round also carries
    `final_*`: all clients with the encoder after the last round. `global_*` are of the server's model as it arrived, on
    the official test set, in the rounds in which it was measured, and `final_global_*` of that after the last round.
    Of a task that is not judged by accuracy, that is null, and `metric` names what `score` is instead; `metrics` has
    all, each as `_mean` over the clients and `_pooled` over their examples (`spatl.tasks.pooling`). A line of a
    classification by accuracy alone has none of these keys.
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
    duplicates: int = 0
    away: int = 0
    errors: int = 0
    asked_again: int = 0
    forgot: tuple[int, ...] = ()
    control_anew: bool = False
    global_accuracy: float | None = None
    global_loss: float | None = None
    final_global_accuracy: float | None = None
    final_global_loss: float | None = None
    joined: tuple[int, ...] = ()
    retired: tuple[int, ...] = ()
    metric: str | None = None
    score: float | None = None
    score_worst: float | None = None
    final_score: float | None = None
    final_score_worst: float | None = None
    global_score: float | None = None
    final_global_score: float | None = None
    metrics: Mapping[str, float | None] | None = None
    final_metrics: Mapping[str, float | None] | None = None
    global_metrics: Mapping[str, float | None] | None = None
    final_global_metrics: Mapping[str, float | None] | None = None


@dataclass(frozen=True)
class TimingRow:
    """Line of `timings.jsonl`: the time that one client took in one round.

    Apart from the other files, because time is what a repeated run does not repeat.
    """

    round: int
    client: int
    training_seconds: float
    selection_seconds: float
    decision_seconds: float


@dataclass(frozen=True)
class SelectionRow:
    """Line of `selections.jsonl`: the channels that clients chose to send in one round.

    Attributes:
        round: Its number.
        groups: Names of the channel groups, each that of the first layer that owns entries of it, in the layout's
            order.
        sizes: Channels of each group.
        kept: By client whose update was folded in, how many channels of each group it sent.
    """

    round: int
    groups: tuple[str, ...]
    sizes: tuple[int, ...]
    kept: Mapping[str, tuple[int, ...]]


MISHAPS = {
    "away": "of the missing not connected",
    "errors": "of the refused errors",
    "late": "late",
    "asked_again": "asked again",
    "duplicates": "answered twice",
}
"""What is counted of a round's messages beside the refused and the missing ones, by key of its row, and in words."""


def mishaps(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many there were in rounds, by key of `MISHAPS`; runs of old have not counted all."""
    rounds = list(rows)
    return {name: sum(row.get(name) or 0 for row in rounds) for name in MISHAPS}


def excluded_line(summary: Mapping[str, Any]) -> str | None:
    """Return a line on the clients that a run refused or left out; None where they hold little.

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
    """Return the arithmetic mean, the same in any order, or None of nothing."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if numbers else None


def known(values: Iterable[float | None]) -> list[float]:
    """Return the numbers among values: what a client without test examples measures is NaN, or None."""
    return [value for value in values if value is not None and not math.isnan(value)]


_OF_TASKS = (
    "metric", "score", "score_worst", "final_score", "final_score_worst", "global_score", "final_global_score",
    "metrics", "final_metrics", "global_metrics", "final_global_metrics",
)  # fmt: skip


def as_line(row: ClientRow | HistoryRow) -> dict[str, Any]:
    """Return the object of a row's line, without the keys of other tasks where it has none of them."""
    return {key: value for key, value in vars(row).items() if value is not None or key not in _OF_TASKS}


def latest_accuracy(row: Mapping[str, Any]) -> float | None:
    """Return the accuracy of all clients after the last round where a row has it (0 is a value), or on arrival.

    Of another task its score.
    """
    final, arrival = score_in(row, "final_"), score_in(row)
    return arrival if final is None else final


def owners_in(rows: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Return the names of the clients' owners by the lines of `clients.jsonl`; those that nobody named are left out."""
    return {row["client"]: str(row["owner"]) for row in rows if row.get("owner") is not None}


def global_accuracy(row: Mapping[str, Any]) -> float | None:
    """Return what the server's model is worth on the official test set, by a row; after the last round if it has that.

    Of another task its score; None where it was not measured.
    """
    final, arrival = score_in(row, "final_global_"), score_in(row, "global_")
    return arrival if final is None else final


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Append one JSON object per line, wait until the disk has them, and return what was appended."""
    data = "".join(to_json(row) + "\n" for row in rows).encode()
    with naming(path), path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return data


def keep_rounds(path: Path, last: int) -> list[dict[str, Any]]:
    """Cut a JSON-lines file, in its place, after the whole lines of the rounds up to `last`, and return these."""
    if not path.exists():
        return []
    rows, kept = [], 0
    with path.open("r+b") as file:
        for number, line in enumerate(file, start=1):
            row = parse_line(path, number, line) if line.endswith(b"\n") else None
            if row is None or row["round"] > last:
                break
            rows.append(row)
            kept += len(line)
        if kept != file.seek(0, os.SEEK_END):
            file.truncate(kept)
            file.flush()
            os.fsync(file.fileno())
    return rows


def parse_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """Return the object of a line.

    Args:
        path: The file, for the error.
        number: Of the line, from 1.
        line: The line.

    Raises:
        DamagedState: It is none.
    """
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DamagedState(f"{path} is damaged: line {number} is no JSON ({_clipped(line)})") from error
    if not isinstance(row, dict):
        raise DamagedState(f"{path} is damaged: line {number} is no JSON object ({_clipped(line)})")
    return row


def _clipped(line: bytes) -> str:
    return repr(line[:20]) + ("..." if len(line) > 20 else "")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the whole lines of a JSON-lines file; a last line still being written is left out.

    Raises:
        DamagedState: A line is no JSON object.
    """
    return lines_in(path, path.read_bytes()) if path.exists() else []


def lines_in(path: Path, data: bytes) -> list[dict[str, Any]]:
    """Return the whole lines of a JSON-lines file, given its bytes; the errors are of `read_lines`."""
    return [parse_line(path, number, line) for number, line in enumerate(data.split(b"\n")[:-1], start=1)]


def read_rounds(path: Path) -> list[dict[str, Any]]:
    """Read a `history.jsonl`: one line for each round, from the first on.

    Raises:
        DamagedState: A line is no JSON object, or a round is missing or there twice.
    """
    return rounds_of(path, read_lines(path))


def rounds_of(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a `history.jsonl`, seen to be one for each round; the errors are of `read_rounds`."""
    for number, row in enumerate(rows, start=1):
        if row.get("round") != number:
            raise DamagedState(
                f"{path} is damaged: line {number} is of round {row.get('round')}, expected round {number}; a line is "
                "missing or stands twice"
            )
    return rows


def is_number(value: Any) -> bool:
    """Return whether a value of a row is there and finite: what a client did not do is null."""
    return isinstance(value, int | float) and math.isfinite(value)


def bytes_on_arrival(history: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the bytes that each round's accuracy on arrival has cost: all earlier rounds, and its own downlink.

    The last round's downlink includes the final encoder for all clients, so its number is slightly too large.
    """
    totals = accumulate((row["uplink_bytes"] + row["downlink_bytes"] for row in history), initial=0)
    return [before + row["downlink_bytes"] for before, row in zip(totals, history, strict=False)]
