"""Recorder of a run: every message into the ledger, every round into the history, all of it to disk at once."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from server.round_record import RoundRecord, client_rows, history_row, selection_rows, timing_rows
from spatl.channels.layout import ChannelGroup
from spatl.json_files import json_bytes
from spatl.runs.files import CLIENTS, HISTORY, LEDGER, SELECTIONS, SUMMARY, TIMINGS
from spatl.runs.findings import forget_findings
from spatl.runs.ledger import Entry
from spatl.runs.log import EVENTS
from spatl.runs.marks import Mark, record_of, replace_marked, write_marks
from spatl.runs.records import NOTABLE_SHARE, HistoryRow, append_lines, as_line, known, mean, mishaps, read_lines
from spatl.runs.scores import metric_of, score_in
from spatl.runs.tensorboard import Scalars
from spatl.tasks.task import CLASSIFICATION, Task
from spatl.training.evaluate import Evaluation
from spatl.wire.reports import EvaluateReport

logger = logging.getLogger(__name__)

_LISTS = ("rejections", "left_out", "forgot", "joined", "retired")  # of a line, which JSON has no tuples for


class Recorder:
    """Collects a round and writes it when it is over.

    Args:
        directory: Where `history.jsonl`, `clients.jsonl` and `ledger.jsonl` go; it is made if it is not there.
        done: The last round that is over, where a run goes on; what the files say of later ones is dropped.
        marks: What the files are to be by then (`spatl.runs.marks`).
        scalars: Where rounds go besides.

    Attributes:
        num_examples: Training examples by client, filled in at registration.
        owners: Names of the clients' owners, where they have any; likewise.
        groups: The channel groups that clients choose from, likewise.
        task: What the run is judged by, likewise.
        history: The rounds written so far.
    """

    def __init__(
        self, directory: Path, *, done: int = 0, marks: Mapping[str, Mark] | None = None, scalars: Scalars | None = None
    ) -> None:
        self.directory = directory
        self._scalars = scalars
        self.num_examples: dict[int, int] = {}
        self.owners: tuple[str, ...] = ()
        self.groups: tuple[ChannelGroup, ...] = ()
        self.task: Task = CLASSIFICATION
        directory.mkdir(parents=True, exist_ok=True)
        forget_findings(directory, after=done)
        self._record = record_of(directory, done, marks)
        history, clients, ledger = (read_lines(directory / name) for name in (HISTORY, CLIENTS, LEDGER))
        self.history = [HistoryRow(**row | {name: tuple(row.get(name, ())) for name in _LISTS}) for row in history]
        if scalars is not None:
            for each in self.history:
                scalars.write(each)
        self._final = {
            row["client"]: EvaluateReport(num_examples=row["num_examples"], accuracy=final, loss=row["final_loss"])
            for row in clients
            if row["round"] == done and (final := score_in(row, "final_")) is not None
        }
        self._participations = Counter(row["client"] for row in clients if row["participated"])
        updates = [row["bytes"] for row in ledger if (row["phase"], row["direction"]) == ("train", "uplink")]
        self._num_updates, self._update_bytes = len(updates), sum(updates)
        self._warned_of: set[int] = set()
        self._round = RoundRecord(server_round=done + 1)

    @property
    def round(self) -> RoundRecord:
        """Record of the round under way; registration belongs to the first."""
        return self._round

    @property
    def most_participations(self) -> int:
        """Largest number of rounds in which any one client's update was folded in."""
        return max(self._participations.values(), default=0)

    @property
    def final_accuracy(self) -> float | None:
        """Mean accuracy of the clients with the encoder after the last round, or score; None before it."""
        return mean(known(report.accuracy for report in self._final.values()))

    @property
    def final_globally(self) -> Evaluation | None:
        """Worth of the server's model after the last round on the official test set, where it was measured."""
        last = self.history[-1] if self.history else None
        score = None if last is None else score_in(asdict(last), "final_global_")
        if last is None or score is None or last.final_global_loss is None:
            return None
        return Evaluation(score, last.final_global_loss)

    def start_clock(self) -> None:
        """Count the seconds of the first round from here: what clients build and import once is no round's work."""
        self._round.started = time.perf_counter()

    def finish_round(self, *, encoder_fingerprint: str) -> HistoryRow:
        """Write the round's lines and open the next."""
        record = self._round
        row = history_row(record, encoder_fingerprint, self.task)
        line = as_line(row)
        self._append(LEDGER, [entry.to_json() for entry in record.entries])
        self._append(CLIENTS, [as_line(row) for row in client_rows(record, self.num_examples, self.owners, self.task)])
        self._append(TIMINGS, [asdict(row) for row in timing_rows(record)])
        if chosen := [asdict(row) for row in selection_rows(record, self.groups)]:
            self._append(SELECTIONS, chosen)
        self._append(HISTORY, [line])
        write_marks(self.directory, row.round, self._record.marks())
        if self._scalars is not None:
            self._scalars.write(row)
        score = score_in(line)
        EVENTS.info(
            "round %d: %s %s, %d updates, %d refused, %d missing, %d bytes up, %d down, %.1f s",
            row.round, metric_of(line), "-" if score is None else f"{score:.4f}", row.participants, row.rejected,
            row.missing, row.uplink_bytes, row.downlink_bytes, row.seconds, extra={"round": row.round},
        )  # fmt: skip
        self.history.append(row)
        self._warn_of_excluded(record)
        self._participations.update(record.outcome.trained.keys())
        self._final = record.final
        self._count_updates(record.entries)
        self._round = RoundRecord(server_round=record.server_round + 1)
        return row

    def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        self._record.grow(name, append_lines(self.directory / name, rows))

    def write_summary(self, facts: Mapping[str, Any], *, whole_update_bytes: int) -> dict[str, Any]:
        """Write `summary.json`: the facts given, and what the rounds add up to.

        Args:
            facts: What does not follow from the rounds.
            whole_update_bytes: The measured length of one reply that sends every entry; 0 if there is none.
        """
        whole = self._num_updates * whole_update_bytes
        uplink = sum(row.uplink_bytes for row in self.history)
        downlink = sum(row.downlink_bytes for row in self.history)
        tested = {client: each for client, each in sorted(self._final.items()) if known([each.accuracy])}
        # A score that a client's examples do not define is no evaluation that did not take place.
        evaluated = {client: each for client, each in self._final.items() if known([each.accuracy, each.loss])}
        losses = [each.loss for _, each in sorted(evaluated.items())]
        accuracies = {client: report.accuracy for client, report in tested.items()}
        refusals = Counter(refusal["client"] for row in self.history for refusal in row.rejections)
        excluded = refusals + Counter(client for row in self.history for client in row.left_out)
        summary = {
            **facts,
            "rounds": len(self.history),
            **self._judged(list(accuracies.values())),
            "loss": mean(known(losses)),
            "uplink_bytes": uplink,
            "downlink_bytes": downlink,
            "total_bytes": uplink + downlink,
            "update_bytes": self._update_bytes,
            "whole_encoder_uplink_bytes": whole,
            "uplink_share": self._update_bytes / whole if whole else None,
            "keep_ratio": mean(row.keep_ratio for row in self.history if row.keep_ratio is not None),
            "flops_ratio": mean(row.flops_ratio for row in self.history if row.flops_ratio is not None),
            "rejected": sum(row.rejected for row in self.history),
            "rejected_by_client": {str(client): number for client, number in sorted(refusals.items())},
            "excluded_by_client": {str(client): number for client, number in sorted(excluded.items())},
            "excluded_examples_share": self._share_of_examples(excluded),
            "missing": sum(row.missing for row in self.history),
            **mishaps(map(asdict, self.history)),
            "not_evaluated": len(self.num_examples) - len(evaluated),
            "seconds": sum(row.seconds for row in self.history),
            "clients": {str(client): accuracy for client, accuracy in accuracies.items()},
        }
        replace_marked(self.directory, SUMMARY, json_bytes(summary))
        return summary

    def _judged(self, scores: Sequence[float]) -> dict[str, Any]:
        """Return what the summary says of the clients' scores: the accuracy of a classification, or another task's."""
        task, told = self.task, self.history[-1].final_metrics if self.history else None
        metrics = {"metric": task.score.name, "metrics": told} if task.tells_more else {}
        if task.counts_hits:
            return {"accuracy": mean(scores), "accuracy_min": min(scores, default=None), **metrics}
        score = {"score": mean(scores), "score_worst": task.worst(scores)}
        return {"accuracy": None, "accuracy_min": None, **score, **metrics}

    def _warn_of_excluded(self, record: RoundRecord) -> None:
        """Warn once of the same clients that a round lacks many of the training examples."""
        excluded = {*record.outcome.rejected, *record.left_out}
        share = self._share_of_examples(excluded)
        if share > NOTABLE_SHARE and not excluded <= self._warned_of:
            self._warned_of |= excluded
            logger.warning(
                "round %d: clients that were refused or left out (%s) hold %.0f %% of all training examples",
                record.server_round, ", ".join(map(str, sorted(excluded))), 100 * share,
                extra={"round": record.server_round},
            )  # fmt: skip

    def _share_of_examples(self, clients: Iterable[int]) -> float:
        everything = sum(self.num_examples.values())
        return sum(self.num_examples.get(client, 0) for client in clients) / everything if everything else 0.0

    def _count_updates(self, entries: Iterable[Entry]) -> None:
        updates = [item for item in entries if item.phase == "train" and item.direction == "uplink"]
        self._num_updates += len(updates)
        self._update_bytes += sum(item.num_bytes for item in updates)
