"""Command `spatl diagnose RUN`: which client's data are faulty, and how, by what the model does on them."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spatl.diagnosis.panel import Diagnosis, ScoreOfClient
from spatl.diagnosis.run import RunDiagnosis, diagnose_run
from spatl.diagnosis.scores import SCORES
from spatl.diagnosis.verdicts import FALSE_ALARMS, MEASURED
from spatl.json_files import to_json, write_json
from spatl.runs.files import DIAGNOSIS
from spatl.terminal.screen import Screen
from spatl.terminal.tables import print_line, print_table

_SOURCES = {
    "recorded": "from the findings that the run has recorded",
    "computed": "from the run's model and the clients' validation splits, which are at hand",
}


def diagnose(options: argparse.Namespace, console: Console) -> None:
    """Print the diagnosis of a run's clients, and write it into its directory.

    Raises:
        SpatlError: There is nothing to go by, or too little.
    """
    directory = Path(options.run)
    watching = Screen(stderr=True)
    with watching.status("") as status:
        found = diagnose_run(
            directory, server_round=options.round,
            progress=lambda done, total: status.update(f"{done} of {total} clients"),
        )  # fmt: skip
    write_json(directory / DIAGNOSIS, found.to_json())
    if options.json:
        print(to_json(found.to_json(), indent=2))
        return
    print_line(console, f"{directory}: {_SOURCES[found.source]}{_round(found)}")
    print_table(console, table_of(found.diagnosis, found.owners))
    for line in notes_of(found.diagnosis):
        print_line(console, line)
    print_line(console, str(directory / DIAGNOSIS))


def table_of(diagnosis: Diagnosis, owners: Mapping[int, str] = {}) -> Table:
    """Return the clients as a table: each score with its place among all, and the verdict."""
    names = [name for name in SCORES if name in diagnosis.clients[0].scores]
    table = Table(title=f"{len(diagnosis.clients)} clients, accuracy of the middle one {_percent(diagnosis.accuracy)}")
    for column in ("client", *(("owner",) if owners else ()), "examples", "accuracy", *names, "evidence"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for each in diagnosis.clients:
        owner = [Text(owners.get(each.client, "-"))] if owners else []
        table.add_row(
            str(each.client), *owner, str(each.num_examples), _percent(each.accuracy),
            *(_score(each.scores[name]) for name in names), f"{each.evidence:.2f}", Text(each.verdict.text),
        )  # fmt: skip
    return table


def notes_of(diagnosis: Diagnosis) -> list[str]:
    """Return what has to be known to read the table, a line each."""
    names = [name for name in SCORES if name in diagnosis.clients[0].scores]
    said = sorted({each.verdict.kind for each in diagnosis.suspects})
    return [
        "in brackets: robust standard deviations from the middle client, above 0 for what is worse",
        "evidence: of mislabelled and mean_z, and of cosine; more than 1 is enough for a verdict",
        *(f"{name}: {SCORES[name].meaning}" for name in names),
        *(
            f"false alarms, {kind}: {FALSE_ALARMS[kind]} of {MEASURED} honest clients (docs/diagnosis.md)"
            for kind in said
        ),
        *(f"not seen: {each}" for each in diagnosis.blind),
    ]


def _score(score: ScoreOfClient) -> str:
    if score.value is None:
        return "-"
    return f"{score.value:.2f}" + ("" if score.place is None else f" ({score.place:+.1f})")


def _round(found: RunDiagnosis) -> str:
    return "" if found.round is None else f", after round {found.round}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
