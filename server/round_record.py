"""Record of the round under way, and the lines that it becomes in a run's files."""

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from spatl.channels.costs import BUDGET_KINDS
from spatl.channels.layout import ChannelGroup
from spatl.rounds.answers import Outcome
from spatl.runs.ledger import Entry, total
from spatl.runs.records import ClientRow, HistoryRow, SelectionRow, TimingRow, known, mean
from spatl.tasks.pooling import together
from spatl.tasks.task import CLASSIFICATION, Measure, Task
from spatl.training.evaluate import Evaluation
from spatl.wire.reports import EvaluateReport


@dataclass
class RoundRecord:
    """Events of the round under way, filled in as they come.

    Attributes:
        server_round: Its number, from 1.
        participants: The clients that were asked to train.
        left_out: Clients that were not asked, for they had failed too often.
        late: Replies that came after their round, or that nobody asked for.
        duplicates: Second replies to one question.
        away: Clients that were asked to train, were not connected, and did not answer.
        joined: Clients that came to a deployment before it.
        retired: Clients that were taken out of one before it.
        silent: Clients that were asked to train last, were connected, and did not answer though all were waited for.
        control_anew: Whether the control variates of all began anew in it.
        asked_again: How many more times than once each client was asked something.
        outcome: What came of it.
        arrived_globally: Worth of the server's model on the official test set, as the round's clients received it.
        final_globally: The same of the model after the last round.
        final: Reports of all clients on the encoder after the last round.
        entries: Messages for the ledger.
        started: `time.perf_counter()` at its beginning, in seconds.
    """

    server_round: int
    participants: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()
    late: int = 0
    duplicates: int = 0
    away: set[int] = field(default_factory=set)
    joined: tuple[int, ...] = ()
    retired: tuple[int, ...] = ()
    silent: set[int] = field(default_factory=set)
    control_anew: bool = False
    asked_again: Counter[int] = field(default_factory=Counter)
    outcome: Outcome = field(default_factory=Outcome)
    arrived_globally: Evaluation | None = None
    final_globally: Evaluation | None = None
    final: dict[int, EvaluateReport] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)


def history_row(record: RoundRecord, encoder_fingerprint: str, task: Task = CLASSIFICATION) -> HistoryRow:
    """Return the line of `history.jsonl` for a round that ends now."""
    trained = list(record.outcome.trained.values())
    final = list(record.final.values())
    arrived, last = record.arrived_globally, record.final_globally
    uplink, downlink = total(record.entries, "uplink"), total(record.entries, "downlink")
    row = HistoryRow(
        round=record.server_round,
        accuracy=mean(known(report.accuracy for report in trained)),
        accuracy_min=min(known(report.accuracy for report in trained), default=None),
        loss=mean(known(report.loss for report in trained)),
        train_loss=mean(report.train_loss for report in trained),
        participants=len(trained),
        rejected=len(record.outcome.rejected),
        missing=len(record.participants) - len(trained) - len(record.outcome.rejected),
        keep_ratio=mean(report.keep_ratio for report in trained),
        flops_ratio=mean(report.flops_ratio for report in trained),
        uplink_bytes=uplink.pop("bytes"),
        downlink_bytes=downlink.pop("bytes"),
        uplink=uplink,
        downlink=downlink,
        encoder_fingerprint=encoder_fingerprint,
        validation_gain=mean(report.validation_gain for report in trained),
        seconds=time.perf_counter() - record.started,
        rejections=tuple(
            {"client": client, "reason": reason} for client, reason in sorted(record.outcome.rejected.items())
        ),
        left_out=record.left_out,
        late=record.late,
        duplicates=record.duplicates,
        away=len(record.away),
        errors=len(record.outcome.errors),
        asked_again=record.asked_again.total(),
        forgot=tuple(sorted(record.outcome.forgot)),
        control_anew=record.control_anew,
        joined=record.joined,
        retired=record.retired,
        skipped=record.outcome.skipped,
        final_accuracy=mean(known(report.accuracy for report in final)),
        final_accuracy_min=min(known(report.accuracy for report in final), default=None),
        final_loss=mean(known(report.loss for report in final)),
        global_accuracy=None if arrived is None else arrived.accuracy,
        global_loss=None if arrived is None else arrived.loss,
        final_global_accuracy=None if last is None else last.accuracy,
        final_global_loss=None if last is None else last.loss,
    )
    return row if not task.tells_more else row_of_task(row, record, task)


def client_rows(
    record: RoundRecord, num_examples: Mapping[int, int], owners: Sequence[str] = (), task: Task = CLASSIFICATION
) -> Iterable[ClientRow]:
    """Yield the lines of `clients.jsonl` for a round, given the training examples of each client, and its owner."""
    entries: dict[int, list[Entry]] = {client: [] for client in record.participants}
    for entry in record.entries:
        entries.setdefault(entry.client, []).append(entry)
    for client, own in sorted(entries.items()):
        trained, final = record.outcome.trained.get(client), record.final.get(client)
        row = ClientRow(
            round=record.server_round,
            client=client,
            participated=trained is not None,
            missed=client in record.participants and trained is None and client not in record.outcome.rejected,
            accuracy=_number(trained.accuracy) if trained else None,
            loss=_number(trained.loss) if trained else None,
            train_loss=trained.train_loss if trained else None,
            num_examples=num_examples.get(client, 0),
            keep_ratio=trained.keep_ratio if trained else None,
            flops_ratio=trained.flops_ratio if trained else None,
            budget_kind=BUDGET_KINDS[trained.budget_kind - 1] if trained and trained.budget_kind else None,
            budget_limit=trained.budget_limit if trained and trained.budget_kind else None,
            validation_gain=trained.validation_gain if trained else None,
            uplink_bytes=total(own, "uplink")["bytes"],
            downlink_bytes=total(own, "downlink")["bytes"],
            seconds=trained.seconds if trained else None,
            rejected=record.outcome.rejected.get(client),
            away=client in record.away,
            error=client in record.outcome.errors,
            asked_again=record.asked_again[client],
            cosine=record.outcome.cosines.get(client),
            final_accuracy=_number(final.accuracy) if final else None,
            final_loss=_number(final.loss) if final else None,
            owner=owners[client] if client < len(owners) else None,
        )
        yield row if not task.tells_more else client_row_of_task(row, record, task)


def row_of_task(row: HistoryRow, record: RoundRecord, task: Task) -> HistoryRow:
    """Return a round's line with what its clients told of a task's metrics: the score in place of the accuracy.

    Args:
        row: The line as of a classification.
        record: The round.
        task: The task.
    """
    final = [report.measures for report in record.final.values() if report.measures and known([report.loss])]
    arrived = [
        record.outcome.measures[client]
        for client, report in sorted(record.outcome.trained.items())
        if known([report.loss]) and record.outcome.measures.get(client)
    ]
    told: dict[str, Any] = {
        "metric": task.score.name,
        "metrics": together(task, arrived) if arrived else None,
        "final_metrics": together(task, final) if final else None,
        "global_metrics": _of_server(record.arrived_globally, task),
        "final_global_metrics": _of_server(record.final_globally, task),
    }
    if task.counts_hits:
        return replace(row, **told)
    for prefix, reports in (("", record.outcome.trained), ("final_", record.final)):
        scores = known(report.accuracy for report in reports.values())
        told |= {f"{prefix}score": mean(scores), f"{prefix}score_worst": task.worst(scores)}
    for prefix in ("global_", "final_global_"):
        told[f"{prefix}score"] = next(iter(known([getattr(row, f"{prefix}accuracy")])), None)
    nothing = ("accuracy", "accuracy_min", "final_accuracy", "final_accuracy_min", "global_accuracy")
    told |= dict.fromkeys((*nothing, "final_global_accuracy"))
    return replace(row, **told)


def client_row_of_task(row: ClientRow, record: RoundRecord, task: Task) -> ClientRow:
    """Return a client's line of a round likewise, with the values of its metrics by their names."""
    final = record.final.get(row.client)
    told: dict[str, Any] = {
        "metrics": named_measures(record.outcome.measures.get(row.client, ()), task) if row.loss is not None else None,
        "final_metrics": None if final is None or row.final_loss is None else named_measures(final.measures, task),
    }
    if task.counts_hits:
        return replace(row, **told)
    told |= {"score": row.accuracy, "final_score": row.final_accuracy, "accuracy": None, "final_accuracy": None}
    return replace(row, **told)


def named_measures(measures: Sequence[Measure], task: Task) -> dict[str, float | None] | None:
    """Return the values of a task's metrics by their names, None for what is not defined; None without measures."""
    if not measures:
        return None
    return {metric.name: _number(each.value) for metric, each in zip(task.metrics, measures, strict=True)}


def _of_server(measured: Evaluation | None, task: Task) -> dict[str, float | None] | None:
    return None if measured is None else named_measures(measured.measures, task)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def timing_rows(record: RoundRecord) -> Iterable[TimingRow]:
    """Yield the lines of `timings.jsonl` for a round: those of the clients whose updates were folded in."""
    for client, report in sorted(record.outcome.trained.items()):
        yield TimingRow(
            round=record.server_round,
            client=client,
            training_seconds=report.training_seconds,
            selection_seconds=report.selection_seconds,
            decision_seconds=report.decision_seconds,
        )


def selection_rows(record: RoundRecord, groups: Sequence[ChannelGroup]) -> Iterable[SelectionRow]:
    """Yield the line of `selections.jsonl` for a round, given the channel groups; none where nobody chose."""
    if record.outcome.kept:
        yield SelectionRow(
            round=record.server_round,
            groups=tuple(group.name for group in groups),
            sizes=tuple(group.size for group in groups),
            kept={str(client): counts for client, counts in sorted(record.outcome.kept.items())},
        )
