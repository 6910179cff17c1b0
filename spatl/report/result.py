"""Result of a run, read back from its directory, as Python and a notebook show it."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatl.errors import SpatlError
from spatl.json_files import parse_object
from spatl.report.page import facts
from spatl.runs.files import ALONE, CLIENTS, CURVES, HISTORY, SUMMARY
from spatl.runs.marks import check_finished, read_marked
from spatl.runs.records import read_lines, read_rounds
from spatl.runs.scores import human_score, metric_of, score_in, worst_in
from spatl.runs.text import human_bytes

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, repr=False)
class RunResult:
    """Finished run, read from its directory.

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

    def model(self, client: int | None = None, *, best: bool = False) -> "nn.Module":
        """Return the model that the run has trained, in eval mode on the CPU.

        Args:
            client: Whose model: with its own part, and with its class frequencies added to the logits where the
                predictor is calibrated. The federation's if not given.
            best: The best model by the clients' validation splits in place of the last one, of a run with
                `report.best`.

        Returns:
            A network from images float32 [B, C, H, W], normalised as `model/model.json` says, to logits [B, K]. Of a
            regression to values [B, K] in the targets' own units.

        Raises:
            SpatlError: The run has left none, its files are damaged, or each client has a part of it.

        Example:
            >>> network = read_run("runs/digits").model(client=3)
            >>> network(images).softmax(1)
        """
        from spatl.artifacts.model_files import (
            read_model,  # torch and all networks: whoever reads numbers needs neither
        )

        return read_model(self.directory, client=client, best=best).with_offset_()

    def __repr__(self) -> str:
        """Return the result in one line."""
        outcome = ", ".join(f"{name} {value}" for name, value in self._outcome())
        return f"<{type(self).__name__} {self._title()}: {outcome}; {self.directory}>"

    def _repr_html_(self) -> str:
        """Return the result as a notebook shows it: a table, and the curves where they were drawn."""
        shown = facts([("", self._title()), *self._outcome(), ("files", str(self.directory))])
        curves = self.directory / CURVES
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
        summary, metric = self.summary, metric_of(self.summary)
        rows = [
            ("rounds", str(summary["rounds"])),
            (metric, human_score(score_in(summary), metric)),
            ("worst client", human_score(worst_in(summary), metric)),
            *_of_the_server(summary),
            ("up", human_bytes(summary["uplink_bytes"])),
            ("down", human_bytes(summary["downlink_bytes"])),
        ]
        return rows + ([("training alone", human_score(score_in(self.alone), metric))] if self.alone else [])


def _of_the_server(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what the server's model is worth on the official test set, where it was measured."""
    measured, metric = score_in(summary, "global_"), metric_of(summary)
    return [] if measured is None else [("server's model on the official test set", human_score(measured, metric))]


def read_run(directory: str | Path) -> RunResult:
    """Read a finished run.

    Raises:
        SpatlError: The directory holds none, or its record is not as it was written.
    """
    directory = Path(directory)
    path = directory / SUMMARY
    if not path.exists():
        raise SpatlError(f"{directory} holds no finished run: {path.name} is not there")
    alone = directory / ALONE
    result = RunResult(
        directory=directory,
        summary=parse_object(path, read_marked(directory, SUMMARY)),
        history=read_rounds(directory / HISTORY),
        clients=read_lines(directory / CLIENTS),
        alone=parse_object(alone / SUMMARY, read_marked(alone, SUMMARY)) if (alone / SUMMARY).exists() else None,
    )
    check_finished(directory)
    return result
