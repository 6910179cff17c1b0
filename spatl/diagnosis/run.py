"""Diagnosis of a run: from the findings it has recorded, or else from its model and its clients' data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spatl.artifacts.description import check_classifies
from spatl.diagnosis.own_data import compute_findings
from spatl.diagnosis.panel import Diagnosis, diagnose
from spatl.runs.directory import config_of
from spatl.runs.files import CLIENTS, CONFIG, SUMMARY
from spatl.runs.findings import findings_rounds, read_findings
from spatl.runs.marks import check_finished
from spatl.runs.records import is_number, mean, owners_in, read_lines


@dataclass(frozen=True)
class RunDiagnosis:
    """Diagnosis of a run's clients.

    Attributes:
        diagnosis: Theirs.
        source: `recorded` or `computed`.
        owners: Names of the clients' owners, of those that the run knows.
        round: The round after which the model was looked at; None for the last.
    """

    diagnosis: Diagnosis
    source: str
    round: int | None
    owners: Mapping[int, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        owners = {str(client): owner for client, owner in self.owners.items()}
        return {"source": self.source, "round": self.round, "owners": owners, **self.diagnosis.to_json()}


def diagnose_run(
    run: Path, *, server_round: int | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> RunDiagnosis:
    """Diagnose the clients of a run.

    Args:
        run: Its directory.
        server_round: Whose recorded findings to take; None for the last that are there, and for computed ones.
        progress: Called with the number of clients that are done, and that of all, where findings are computed.

    Raises:
        SpatlError: There is nothing to go by, or too little.
    """
    if (run / CONFIG).is_file():
        check_classifies(config_of(run).task.name, what="spatl diagnose")
    cosines, owners = mean_cosines(run), owners_in(read_lines(run / CLIENTS))
    if server_round is not None or findings_rounds(run):
        record = read_findings(run, server_round)
        found = diagnose(record.by_client, class_names=record.class_names, cosines=cosines)
        return RunDiagnosis(found, "recorded", record.round, owners)
    computed = compute_findings(run, progress=progress)
    found = diagnose(
        computed.findings, class_names=computed.class_names, cosines=cosines, batch_norm=computed.batch_norm
    )
    return RunDiagnosis(found, "computed", None, owners)


def mean_cosines(run: Path) -> dict[int, float | None]:
    """Return the cosine of each client's updates with the sums of the others', mean over the rounds it has one in."""
    by_client, rows = dict[int, list[float]](), read_lines(run / CLIENTS)
    if (run / SUMMARY).exists():
        check_finished(run, (CLIENTS,))
    for row in rows:
        cosine = row.get("cosine")
        if cosine is not None and is_number(cosine):
            by_client.setdefault(row["client"], []).append(cosine)
    return {client: mean(values) for client, values in by_client.items()}
