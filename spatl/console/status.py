"""Command `spatl status RUN`: the state of a run as its directory says, while it runs and afterwards."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spatl.extensions.late import LateModule
from spatl.json_files import to_json
from spatl.runs.records import MISHAPS
from spatl.runs.scores import human_score
from spatl.runs.status import Status, read_status, run_below
from spatl.runs.text import human_bytes
from spatl.terminal.tables import print_line, print_table

if TYPE_CHECKING:
    from spatl.runs import findings as recorded
else:
    recorded = LateModule("spatl.runs.findings")  # with which PyTorch comes, where --findings asks for them


def show_status(options: argparse.Namespace, console: Console) -> None:
    """Print the status of a run, as lines and a table or as one JSON object."""
    directory = Path(options.run)
    status = read_status(directory)
    findings = recorded.findings_by_round(run_below(directory)) if options.findings else None
    if options.json:
        named = {} if findings is None else {"findings": {str(number): who for number, who in findings.items()}}
        print(to_json(asdict(status) | named, indent=2))
        return

    def say(line: str) -> None:
        print_line(console, line)

    say(f"{directory}: {status.method}, {status.state}{f': {status.message}' if status.message else ''}")
    since = "" if status.seconds_since is None else f", {_duration(status.seconds_since)} ago"
    left = f", {_duration(status.seconds_left)} left" if status.seconds_left else ""
    pace = "" if status.seconds_per_round is None else f", {status.seconds_per_round:.1f} s a round"
    say(f"round {status.round} of {status.rounds}{since}{pace}{left}")
    say(
        f"{status.metric} {human_score(status.accuracy, status.metric)}, up {human_bytes(status.uplink_bytes)}, down "
        f"{human_bytes(status.downlink_bytes)}, refused {status.refused}, missing {status.missing}"
    )
    if status.global_accuracy is not None:
        measured = human_score(status.global_accuracy, status.metric)
        say(f"{status.metric} {measured} of the server's model on the official test set")
    if told := [f"{status.mishaps[name]} {words}" for name, words in MISHAPS.items() if status.mishaps[name]]:
        say(", ".join(told))
    for number in sorted({*status.control_anew, *status.joined, *status.retired}):
        for line in _changes(status, number):
            say(f"round {number}: {line}")
    table = Table()
    owned = any(client.owner is not None for client in status.clients)
    owner = ("owner",) if owned else ()
    for name in ("client", *owner, "rounds", "last", status.metric, "up", "down", "missed", "refused"):
        table.add_column(name, justify="right")
    for client in status.clients:
        table.add_row(
            str(client.client), *([Text(client.owner or "-")] if owned else []), str(client.rounds),
            "-" if client.last_round is None else str(client.last_round), human_score(client.accuracy, status.metric),
            human_bytes(client.uplink_bytes), human_bytes(client.downlink_bytes), str(client.missed),
            f"{client.refused}{', out' if client.left_out or client.absent is not None else ''}",
        )  # fmt: skip
    print_table(console, table)
    for client in status.clients:
        if client.absent is not None:
            say(f"client {client.client} takes no part: {client.absent}")
        if client.last_reason is not None:
            out = ", left out for now" if client.left_out else ""
            say(f"client {client.client}{out}; its last refusal: {client.last_reason}")
    for line in [] if findings is None else _findings_lines(findings, [client.client for client in status.clients]):
        say(line)


def _changes(status: Status, number: int) -> Iterator[str]:
    """Yield what changed before a round: who came, who was retired, and why all control variates began anew."""
    joined, gone, lost = (of.get(number) for of in (status.joined, status.retired, status.control_anew))
    if joined:
        yield f"client {', '.join(map(str, joined))} came"
    if gone:
        yield f"client {', '.join(map(str, gone))} was retired"
    if lost:
        who = ", ".join(map(str, lost))
        yield f"all control variates began anew, for those of client {who} were lost or of an older state"
    elif lost is not None:
        yield "all control variates began anew, for c contained those of who was retired"


def _findings_lines(findings: Mapping[int, Sequence[int]], clients: Sequence[int]) -> list[str]:
    """Return a line on each round that has findings, and who is not among those that answered."""
    lines = []
    for number, answered in findings.items():
        silent = [str(client) for client in clients if client not in answered]
        without = f"; none of client {', '.join(silent)}" if silent else ""
        lines.append(f"round {number}: findings of {len(answered)} of {len(clients)} clients{without}")
    return lines or ["no round has findings: report.findings asks for them"]


def _duration(seconds: float) -> str:
    """Write seconds in the largest unit that leaves a whole number of some size."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
