"""The recorder of a run: every message into the ledger, every round into the history, all of it to disk at once."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spatl.channels.costs import BUDGET_KINDS
from spatl.json_files import write_json
from spatl.runs.ledger import Entry, total
from spatl.runs.log import EVENTS
from spatl.runs.records import NOTABLE_SHARE, ClientRow, HistoryRow, TimingRow, append_lines, keep_rounds, mean
from spatl.runs.tensorboard import Scalars
from spatl.wire.protocol import EvaluateReport, TrainReport

logger = logging.getLogger(__name__)

_FILES = ("history", "clients", "ledger", "timings")


@dataclass
class RoundRecord:
    """What happened in the round under way."""

    server_round: int
    participants: tuple[int, ...] = ()
    trained: dict[int, TrainReport] = field(default_factory=dict)
    left_out: tuple[int, ...] = ()
    late: int = 0
    skipped: bool = False
    rejected: dict[int, str] = field(default_factory=dict)
    tracebacks: dict[int, str] = field(default_factory=dict)  # of those that an exception stopped
    diverged: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    final: dict[int, EvaluateReport] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)


class Recorder:
    """Collects a round and writes it when it is over.

    Args:
        directory: Where `history.jsonl`, `clients.jsonl` and `ledger.jsonl` go; it is made if it is not there.
        done: The last round that is over, where a run goes on; what the files say of later ones is dropped.
        scalars: Where rounds go besides.

    Attributes:
        num_examples: Training examples by client, filled in at registration.
        history: The rounds written so far.
    """

    def __init__(self, directory: Path, *, done: int = 0, scalars: Scalars | None = None) -> None:
        self.directory = directory
        self._scalars = scalars
        self.num_examples: dict[int, int] = {}
        directory.mkdir(parents=True, exist_ok=True)
        history, clients, ledger, _ = (keep_rounds(directory / f"{name}.jsonl", done) for name in _FILES)
        self.history = [
            HistoryRow(**{**row, "rejections": tuple(row["rejections"]), "left_out": tuple(row["left_out"])})
            for row in history
        ]
        self._final = {
            row["client"]: EvaluateReport(
                num_examples=row["num_examples"], accuracy=row["final_accuracy"], loss=row["final_loss"]
            )
            for row in clients
            if row["round"] == done and row["final_accuracy"] is not None
        }
        self._participations = Counter(row["client"] for row in clients if row["participated"])
        updates = [row["bytes"] for row in ledger if (row["phase"], row["direction"]) == ("train", "uplink")]
        self._num_updates, self._update_bytes = len(updates), sum(updates)
        self._warned_of: set[int] = set()
        self._round = RoundRecord(server_round=done + 1)

    @property
    def round(self) -> RoundRecord:
        """The round under way; registration belongs to the first."""
        return self._round

    @property
    def most_participations(self) -> int:
        """In how many rounds the client that was folded in most often was so."""
        return max(self._participations.values(), default=0)

    def start_clock(self) -> None:
        """Count the seconds of the first round from here: what clients build and import once is no round's work."""
        self._round.started = time.perf_counter()

    def finish_round(self, *, encoder_fingerprint: str) -> HistoryRow:
        """Write the round's lines and open the next."""
        record = self._round
        row = self._history_row(record, encoder_fingerprint)
        append_lines(self.directory / "ledger.jsonl", (entry.to_json() for entry in record.entries))
        append_lines(self.directory / "clients.jsonl", (asdict(row) for row in self._client_rows(record)))
        append_lines(self.directory / "timings.jsonl", (asdict(row) for row in self._timing_rows(record)))
        append_lines(self.directory / "history.jsonl", [asdict(row)])
        if self._scalars is not None:
            self._scalars.write(row)
        EVENTS.info(
            "round %d: accuracy %s, %d updates, %d refused, %d missing, %d bytes up, %d down, %.1f s",
            row.round, "-" if row.accuracy is None else f"{row.accuracy:.4f}", row.participants, row.rejected,
            row.missing, row.uplink_bytes, row.downlink_bytes, row.seconds, extra={"round": row.round},
        )  # fmt: skip
        self.history.append(row)
        self._warn_of_excluded(record)
        self._participations.update(record.trained.keys())
        self._final = record.final
        self._count_updates(record.entries)
        self._round = RoundRecord(server_round=record.server_round + 1)
        return row

    def write_summary(self, facts: Mapping[str, Any], *, whole_update_bytes: int) -> dict[str, Any]:
        """Write `summary.json`: the facts given, and what the rounds add up to.

        Args:
            facts: What does not follow from the rounds.
            whole_update_bytes: The measured length of one reply that sends every entry; 0 if there is none.
        """
        whole = self._num_updates * whole_update_bytes
        uplink = sum(row.uplink_bytes for row in self.history)
        downlink = sum(row.downlink_bytes for row in self.history)
        accuracies = {client: report.accuracy for client, report in sorted(self._final.items())}
        refusals = Counter(refusal["client"] for row in self.history for refusal in row.rejections)
        excluded = refusals + Counter(client for row in self.history for client in row.left_out)
        summary = {
            **facts,
            "rounds": len(self.history),
            "accuracy": mean(accuracies.values()),
            "accuracy_min": min(accuracies.values(), default=None),
            "loss": mean(report.loss for report in self._final.values()),
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
            "not_evaluated": len(self.num_examples) - len(self._final),
            "seconds": sum(row.seconds for row in self.history),
            "clients": {str(client): accuracy for client, accuracy in accuracies.items()},
        }
        write_json(self.directory / "summary.json", summary)
        return summary

    def _warn_of_excluded(self, record: RoundRecord) -> None:
        """Say once of the same clients that a round goes without much of what there is to learn from."""
        excluded = {*record.rejected, *record.left_out}
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

    def _history_row(self, record: RoundRecord, encoder_fingerprint: str) -> HistoryRow:
        trained = list(record.trained.values())
        final = list(record.final.values())
        uplink, downlink = total(record.entries, "uplink"), total(record.entries, "downlink")
        return HistoryRow(
            round=record.server_round,
            accuracy=mean(report.accuracy for report in trained),
            accuracy_min=min((report.accuracy for report in trained), default=None),
            loss=mean(report.loss for report in trained),
            train_loss=mean(report.train_loss for report in trained),
            participants=len(trained),
            rejected=len(record.rejected),
            missing=len(record.participants) - len(trained) - len(record.rejected),
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
                {"client": client, "reason": reason} for client, reason in sorted(record.rejected.items())
            ),
            left_out=record.left_out,
            late=record.late,
            skipped=record.skipped,
            final_accuracy=mean(report.accuracy for report in final),
            final_accuracy_min=min((report.accuracy for report in final), default=None),
            final_loss=mean(report.loss for report in final),
        )

    def _client_rows(self, record: RoundRecord) -> Iterable[ClientRow]:
        entries: dict[int, list[Entry]] = {client: [] for client in record.participants}
        for entry in record.entries:
            entries.setdefault(entry.client, []).append(entry)
        for client, own in sorted(entries.items()):
            trained, final = record.trained.get(client), record.final.get(client)
            yield ClientRow(
                round=record.server_round,
                client=client,
                participated=trained is not None,
                missed=client in record.participants and trained is None and client not in record.rejected,
                accuracy=trained.accuracy if trained else None,
                loss=trained.loss if trained else None,
                train_loss=trained.train_loss if trained else None,
                num_examples=self.num_examples.get(client, 0),
                keep_ratio=trained.keep_ratio if trained else None,
                flops_ratio=trained.flops_ratio if trained else None,
                budget_kind=BUDGET_KINDS[trained.budget_kind - 1] if trained and trained.budget_kind else None,
                budget_limit=trained.budget_limit if trained and trained.budget_kind else None,
                validation_gain=trained.validation_gain if trained else None,
                uplink_bytes=total(own, "uplink")["bytes"],
                downlink_bytes=total(own, "downlink")["bytes"],
                seconds=trained.seconds if trained else None,
                rejected=record.rejected.get(client),
                final_accuracy=final.accuracy if final else None,
                final_loss=final.loss if final else None,
            )

    @staticmethod
    def _timing_rows(record: RoundRecord) -> Iterable[TimingRow]:
        for client, report in sorted(record.trained.items()):
            yield TimingRow(
                round=record.server_round,
                client=client,
                training_seconds=report.training_seconds,
                selection_seconds=report.selection_seconds,
                decision_seconds=report.decision_seconds,
            )
