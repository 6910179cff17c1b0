"""Rounds of a run as TensorBoard's scalars (`report.tensorboard`)."""

import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spatl.errors import ConfigError
from spatl.runs.records import HistoryRow, global_accuracy
from spatl.runs.scores import metric_of, score_in, worst_in


def check_tensorboard() -> None:
    """Raise a `SpatlError` where scalars cannot be written.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("report.tensorboard needs TensorBoard: pip install 'spatl[tensorboard]'")


class Scalars:
    """Writes rounds as they end.

    Args:
        directory: Where the event files go.
        goes_on: Whether rounds are there already: their files may have been damaged, and all of them are to be written
            again.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, directory: Path, *, goes_on: bool = False) -> None:
        check_tensorboard()
        from torch.utils.tensorboard import SummaryWriter  # an extra, which takes a second to import

        self._writer: Any = SummaryWriter(log_dir=str(directory), purge_step=1 if goes_on else None)

    def write(self, row: HistoryRow) -> None:
        """Write one round."""
        line = asdict(row)
        metric = metric_of(line)
        values = {
            f"{metric}/on arrival": score_in(line),
            f"{metric}/worst client": worst_in(line),
            f"{metric}/final": score_in(line, "final_"),
            f"{metric}/server's model": global_accuracy(line),
            "loss/on arrival": row.loss,
            "loss/training": row.train_loss,
            "bytes/up": row.uplink_bytes,
            "bytes/down": row.downlink_bytes,
            "clients/participants": row.participants,
            "clients/refused": row.rejected,
            "clients/missing": row.missing,
            "clients/left out": len(row.left_out),
            "selection/keep ratio": row.keep_ratio,
            "selection/FLOPs ratio": row.flops_ratio,
            "seconds/round": row.seconds,
        }
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, row.round)
        self._writer.flush()
