"""Command `spatl partition`: the examples that each client would get, as a table and a picture; nothing is run."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import load_config
from spatl.data.partitioners import partition_settings
from spatl.errors import ConfigError, SpatlError
from spatl.extensions.late import LateModule
from spatl.report.partition_figure import SPLITS, PartitionCounts, draw_partition
from spatl.terminal.tables import natural_width, print_line, print_table

if TYPE_CHECKING:
    from spatl.data import counting
    from spatl.rounds import client_data
else:  # with which PyTorch comes, once the config is read
    counting, client_data = LateModule("spatl.data.counting"), LateModule("spatl.rounds.client_data")

logger = logging.getLogger(__name__)

_MANY_CLASSES = 12  # beyond, a table with a column for each is wider than a terminal


def partition(options: argparse.Namespace, console: Console) -> None:
    """Print the partition of a config, and draw it.

    Raises:
        SpatlError: The config, the data set or the partition does not work out, or the picture cannot be written.
    """
    config = load_config(options.config, options.overrides)
    path = _picture_path(config, options.out)
    counts, num_examples = count_partition(config)
    print_counts(console, counts_table(counts), counts)
    left_out = num_examples - int(counts.totals.sum())
    if left_out:
        console.print(f"{left_out:,} of {num_examples:,} examples belong to no client", highlight=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpatlError(f"cannot make the picture's directory {path.parent}: {error.strerror}") from error
    draw_partition(counts, path)
    print_line(console, str(path))


def count_partition(config: ExperimentConfig) -> tuple[PartitionCounts, int]:
    """Return the counts of a config's partition, and the number of examples of its data set.

    Raises:
        DataError: The data set is not there, or cannot be partitioned like this.
    """
    client_data.check_simulated(config)
    dataset, parts = client_data.load_clients(config)
    for remark in dataset.remarks():
        logger.warning("%s", remark)
    of_clients = []
    for client in range(len(parts)):
        of_clients.append(client_data.split_client(config, dataset, parts, client).sizes)
    kinds, splits = counting.count_kinds(dataset, parts), np.array(of_clients, dtype=np.int64)
    counts = PartitionCounts(
        _title(config),
        kinds.names,
        kinds.counts,
        splits,
        client_data.owners_of(config, dataset, parts),
        kinds.sizes,
        kinds.noun,
    )
    return counts, len(dataset)


def _picture_path(config: ExperimentConfig, out: str | None) -> Path:
    section = config.partition
    name = f"partition-{config.data.name}-{section.name}-{section.num_clients}-{config.seed}.png".replace(":", "-")
    path = (Path("runs") / name if out is None else Path(out)).absolute()
    if path.suffix != ".png" or path.is_dir():
        raise ConfigError(f"--out must name a .png file, got {out}")
    return path


def partition_name(config: ExperimentConfig) -> str:
    """Return the partitioner of a config with what it reads: `dirichlet (alpha 0.5)`."""
    section = config.partition
    read = (setting for setting in partition_settings(section.name) if setting != "min_examples")
    settings = [_setting(setting, getattr(section, setting)) for setting in read]
    if section.feature_noise:
        settings.append(f"feature_noise {section.feature_noise:g}")
    return f"{section.name} ({', '.join(settings)})" if settings else section.name


def _setting(name: str, value: object) -> str:
    return f"{name} {value:g}" if isinstance(value, int | float) else f"{name} {value}"


def _title(config: ExperimentConfig) -> str:
    section, name = config.partition, partition_name(config)
    return f"{config.data.name}, {name}: {section.num_clients} clients, seed {config.seed}"


def counts_table(counts: PartitionCounts, *, each_class: bool = True) -> Table:
    """Return a row per client, then the sums: a column per class, or only the number of classes and the largest.

    Names are the data set's own: as `Text`, square brackets in them are not taken for rich's markup.
    """
    table = Table(title=Text(counts.title, style="table.title"), box=None, header_style="bold")
    table.add_column("client", justify="right", min_width=6)
    if counts.owners:
        table.add_column("owner", no_wrap=True)
    each_class = each_class and len(counts.classes) <= _MANY_CLASSES
    for name in counts.classes if each_class else (counts.noun[1], f"largest {counts.noun[0]}"):
        table.add_column(Text(name), justify="right", no_wrap=True)
    for name in ("all", *SPLITS):
        table.add_column(name, justify="right", no_wrap=True)

    def add(client: str, owner: str, of_classes: Sequence[int], total: int, of_splits: Sequence[int]) -> None:
        most = int(np.argmax(of_classes))
        short = [
            f"{np.count_nonzero(of_classes)} of {len(of_classes)}",
            Text(f"{counts.classes[most]}: {of_classes[most] / total:.0%}"),
        ]
        numbers = [f"{number:,}" if number else "-" for number in of_classes]
        named = [Text(owner)] if counts.owners else []
        sizes = [f"{number:,}" if number else "-" for number in of_splits]
        table.add_row(client, *named, *(numbers if each_class else short), f"{total:,}", *sizes)

    for client, (of_classes, total, of_splits) in enumerate(
        zip(counts.counts, counts.totals, counts.splits, strict=True)
    ):
        owner = counts.owners[client] if counts.owners else ""
        add(str(client), owner, of_classes.tolist(), int(total), of_splits.tolist())
    table.add_section()
    add("all", "", counts.counts.sum(axis=0).tolist(), int(counts.totals.sum()), counts.splits.sum(axis=0).tolist())
    return table


def print_counts(console: Console, table: Table, counts: PartitionCounts) -> None:
    """Print the table whole; in a terminal too narrow for a column per class the short one."""
    if console.is_terminal and natural_width(console, table) > console.width:
        table = counts_table(counts, each_class=False)
    print_table(console, table)
