"""Status of a run, read from its directory while it runs and afterwards."""

import math
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from spatl.deployment.sites import DEFAULT_RUN, ServerSite, is_deployment, resume_command
from spatl.errors import ConfigError, DamagedState
from spatl.json_files import read_object
from spatl.runs.directory import config_of, has_rounds, is_running
from spatl.runs.files import CLIENTS, CONFIG, ERROR, HISTORY, REGISTRATION, SUMMARY
from spatl.runs.marks import check_finished, read_so_far
from spatl.runs.records import global_accuracy, is_number, latest_accuracy, lines_in, mishaps, owners_in, rounds_of
from spatl.runs.scores import metric_of
from spatl.runs.waiting import read_waiting

_OF_A_ROUND: Final = frozenset({"round", "rejected", "missing", "uplink_bytes", "downlink_bytes", "seconds"})
_OF_A_CLIENT: Final = frozenset({"round", "client", "participated", "rejected", "uplink_bytes", "downlink_bytes"})

State = Literal["running", "finished", "failed", "stopped"]


@dataclass(frozen=True)
class ClientHealth:
    """Health of one client, as far as the run has come.

    Attributes:
        client: Its partition id.
        owner: The name of whose data it has; None where nobody knows.
        rounds: How many rounds its update was folded in.
        last_round: The last of these; None if there is none.
        accuracy: Its last accuracy, of the encoder as it arrived.
        missed: How many of its replies did not come.
        refused: How many of its updates were refused.
        last_reason: Why the last of them was.
        left_out: Whether it was not asked in the last round, because it had failed too often.
        absent: Why it takes no part in a deployment's run; None where it does.
        uplink_bytes: What it has sent.
        downlink_bytes: What it was sent.
    """

    client: int
    owner: str | None
    rounds: int
    last_round: int | None
    accuracy: float | None
    missed: int
    refused: int
    last_reason: str | None
    left_out: bool
    absent: str | None
    uplink_bytes: int
    downlink_bytes: int


@dataclass(frozen=True)
class Status:
    """Status of a run, as far as it has come.

    Attributes:
        state: `running` while a process has its directory; `stopped` if none has it and it has not ended by itself.
        message: Why it failed or ended early, what to do about one that stopped, or which clients one that runs waits
            for.
        method: The method's title.
        round: The last round that is over.
        rounds: How many there will be; of a run that ended by itself before its last one, how many there were.
        accuracy: Over all clients after the last round; before that, of the last round that is over.
        global_accuracy: Of the server's model on the official test set, when it was last measured; None for never.
        metric: What these are: accuracies, or scores of another task.
        participants: Clients whose update the last round folded in.
        refused: Refused updates of the whole run.
        missing: Replies that did not come.
        mishaps: What else is counted of the messages of the whole run, by key of `spatl.runs.records.MISHAPS`.
        control_anew: The rounds in which the control variates of all began anew, each with the clients that had lost
            theirs before.
        joined: The rounds before which clients came to a deployment, and which.
        retired: The rounds before which clients were taken out of one, and which.
        uplink_bytes: Sent by the clients.
        downlink_bytes: Sent to them.
        seconds_per_round: In the mean.
        seconds_left: As it goes, until the last round is over; 0 unless the run goes on.
        seconds_since: How long ago the last round was written; None before the first.
        clients: One by one.
    """

    state: State
    message: str | None
    method: str
    round: int
    rounds: int
    accuracy: float | None
    global_accuracy: float | None
    participants: int
    refused: int
    missing: int
    mishaps: Mapping[str, int]
    control_anew: Mapping[int, tuple[int, ...]]
    joined: Mapping[int, tuple[int, ...]]
    retired: Mapping[int, tuple[int, ...]]
    uplink_bytes: int
    downlink_bytes: int
    seconds_per_round: float | None
    seconds_left: float | None
    seconds_since: float | None
    clients: tuple[ClientHealth, ...]
    metric: str = "accuracy"


def run_below(directory: Path) -> Path:
    """Return the directory of the run that a deployed server's directory holds; that of any other run is its own."""
    return directory / DEFAULT_RUN if (directory / ServerSite.FILE).exists() else directory


def read_status(directory: Path) -> Status:
    """Read the status of a run from its directory.

    Raises:
        SpatlError: The directory holds no run, or its record is damaged.
    """
    directory = run_below(directory)
    if not (directory / CONFIG).is_file():
        raise ConfigError(f"{directory} holds no run: config.yaml is not there")
    config = config_of(directory)
    history, rows = (lines_in(directory / name, read_so_far(directory, name)) for name in (HISTORY, CLIENTS))
    rounds_of(directory / HISTORY, history)
    _check_rows(directory / HISTORY, history, _OF_A_ROUND)
    _check_rows(directory / CLIENTS, rows, _OF_A_CLIENT)
    state, message = _state(directory)
    if state == "finished":
        check_finished(directory, (HISTORY, CLIENTS))
    last: Mapping[str, Any] = history[-1] if history else {}
    best = _best_of_one_cut_short(directory) if state == "finished" else None
    if best is not None:
        message = f"no round since {best} was better (server.stop_after)"
    seconds = math.fsum(row["seconds"] for row in history) / len(history) if history else None
    left = None if seconds is None else seconds * (config.rounds - len(history)) if state == "running" else 0.0
    written = directory / HISTORY
    return Status(
        state=state,
        message=message,
        method=config.row.title,
        round=last.get("round", 0),
        rounds=config.rounds if best is None else last.get("round", 0),
        accuracy=latest_accuracy(last),
        metric=metric_of(last),
        global_accuracy=next(filter(is_number, map(global_accuracy, reversed(history))), None),
        participants=last.get("participants", 0),
        refused=sum(row["rejected"] for row in history),
        missing=sum(row["missing"] for row in history),
        mishaps=mishaps(history),
        control_anew=_control_anew(history),
        joined={row["round"]: tuple(row["joined"]) for row in history if row.get("joined")},
        retired={row["round"]: tuple(row["retired"]) for row in history if row.get("retired")},
        uplink_bytes=sum(row["uplink_bytes"] for row in history),
        downlink_bytes=sum(row["downlink_bytes"] for row in history),
        seconds_per_round=seconds,
        seconds_left=left,
        seconds_since=max(0.0, time.time() - written.stat().st_mtime) if history else None,
        clients=_clients(history, rows, config.partition.num_clients, _absent(directory)),
    )


def _control_anew(history: Iterable[Mapping[str, Any]]) -> dict[int, tuple[int, ...]]:
    """Return the rounds in which control variates began anew, and who had lost one since the last time."""
    found, forgot = dict[int, tuple[int, ...]](), set[int]()
    for row in history:
        if row.get("control_anew"):
            found[row["round"]] = tuple(sorted(forgot))
            forgot.clear()
        forgot.update(row.get("forgot") or ())
    return found


def _check_rows(path: Path, rows: Sequence[Mapping[str, Any]], read: frozenset[str]) -> None:
    """Raise unless every line has the entries that are read of it."""
    for number, row in enumerate(rows, start=1):
        if lacking := sorted(read - row.keys()):
            raise DamagedState(f"{path} is damaged: line {number} lacks {', '.join(lacking)}")


def _state(directory: Path) -> tuple[State, str | None]:
    if (directory / SUMMARY).exists():
        return "finished", None
    if is_running(directory):
        waiting = read_waiting(directory)
        return "running", None if waiting is None else str(waiting)
    if (directory / ERROR).exists():
        failure = str(_entry_of(directory / ERROR, "message"))
        return "failed", f"{failure} ({_next_command(directory)})" if is_deployment(directory) else failure
    return "stopped", _next_command(directory)


def _best_of_one_cut_short(directory: Path) -> int | None:
    """Return the best round of a finished run that had no more rounds for want of better ones; None for any other."""
    early = read_object(directory / SUMMARY).get("ended_early")
    if early is None:
        return None
    if not isinstance(early, dict) or type(early.get("best_round")) is not int:
        raise DamagedState(f"{directory / SUMMARY} is damaged: its 'ended_early' has no best round; see its history")
    return int(early["best_round"])


def _next_command(directory: Path) -> str:
    """Return the command that goes on with a run that no process has."""
    if is_deployment(directory):
        command = resume_command(directory)
    else:
        command = shlex.join(["spatl", "run", "--resume", str(directory)])
    return f"{command} goes on after its last round" if has_rounds(directory) else f"{command} starts it again"


def _absent(directory: Path) -> dict[int, str]:
    """Return the reasons of clients that take no part in a deployment's run."""
    path = directory / REGISTRATION
    absent = _entry_of(path, "absent") if path.exists() else {}
    if not isinstance(absent, dict) or not all(str(client).isdecimal() for client in absent):
        raise DamagedState(f"{path} is damaged: its 'absent' is not by client; put it back from a copy")
    return {int(client): str(why) for client, why in absent.items()}


def _entry_of(path: Path, key: str) -> Any:
    """Return what a JSON file of the run has under a key.

    Raises:
        DamagedState: It is not as it was written.
    """
    content = read_object(path)
    if key not in content:
        raise DamagedState(f"{path} is damaged: it lacks {key!r}; put it back from a copy, or delete it")
    return content[key]


def _clients(
    history: list[dict[str, Any]], rows: list[dict[str, Any]], num_clients: int, absent: Mapping[int, str]
) -> tuple[ClientHealth, ...]:
    of_client: dict[int, list[dict[str, Any]]] = {client: [] for client in range(num_clients)}
    for row in rows:
        of_client.setdefault(row["client"], []).append(row)
    missed = dict.fromkeys(of_client, 0)
    for row in rows:
        # Registration (round 1) and the last evaluation have rows as well, of clients that were not asked to train.
        missed[row["client"]] += bool(row.get("missed"))
    left_out = set(history[-1].get("left_out") or ()) if history else set()
    health, owners = [], owners_in(rows)
    for client, own in sorted(of_client.items()):
        trained = [row for row in own if row["participated"]]
        reasons = [row["rejected"] for row in own if row["rejected"] is not None]
        known = map(latest_accuracy, own)
        accuracies = [accuracy for accuracy in known if accuracy is not None]
        health.append(
            ClientHealth(
                client=client,
                owner=owners.get(client),
                rounds=len(trained),
                last_round=trained[-1]["round"] if trained else None,
                accuracy=accuracies[-1] if accuracies else None,
                missed=missed[client],
                refused=len(reasons),
                last_reason=reasons[-1] if reasons else None,
                left_out=client in left_out,
                absent=absent.get(client),
                uplink_bytes=sum(row["uplink_bytes"] for row in own),
                downlink_bytes=sum(row["downlink_bytes"] for row in own),
            )
        )
    return tuple(health)
