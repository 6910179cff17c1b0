"""Command `spatl show WHAT`: names for configs, settings, a device's file, shipped configs, costs of codecs, starts."""

import argparse
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from spatl.config.device import device_text
from spatl.config.sections import AGGREGATION_DOOR
from spatl.config.settings import Setting, find_settings, section_meanings
from spatl.config.shipped import opening_words, shipped_configs
from spatl.data.datasets import DATASET_DOOR, DATASETS
from spatl.data.partitioners import PARTITIONER_DOOR, PARTITIONERS
from spatl.errors import ConfigError, did_you_mean
from spatl.extensions.late import LateModule
from spatl.extensions.references import Door
from spatl.methods import METHOD_DOOR, METHODS
from spatl.models.table import MODEL_DOOR, MODELS
from spatl.selection.table import SELECTOR_DOOR, SELECTORS
from spatl.tasks.loss_table import LOSS_DOOR, LOSSES
from spatl.tasks.metrics import DEFAULT_METRICS, METRIC_DOOR, METRICS
from spatl.terminal.tables import print_line, print_table
from spatl.wire.codecs import CODEC_DOOR, CODECS

if TYPE_CHECKING:
    from spatl.bench import codecs
else:
    codecs = LateModule("spatl.bench.codecs")


@dataclass(frozen=True)
class _Listing:
    """Table that can be shown: the names of its columns, what makes its rows, and what else a config may name there."""

    columns: tuple[str, ...]
    rows: Callable[[], Iterable[tuple[str, ...]]]
    door: Door | None = None


def show(options: argparse.Namespace, console: Console) -> None:
    """Print one table, or the rows of it that are named.

    Raises:
        ConfigError: There is no row of a name.
    """
    if options.what == "settings":
        _show_settings(console, options.names)
        return
    if options.what == "device":
        if options.names:
            raise ConfigError(f"device is one file, shown whole: leave out {options.names[0]}")
        for line in device_text().splitlines():
            print_line(console, line)
        return
    listing = LISTINGS[options.what]
    rows = list(listing.rows())
    known = [row[0] for row in rows]
    if unknown := [name for name in options.names if name not in known]:
        close = did_you_mean(unknown[0], known)
        raise ConfigError(f"{options.what} has no {unknown[0]!r}{close}; known: {', '.join(known)}")
    table = Table(title=options.what)
    for position, column in enumerate(listing.columns):
        table.add_column(column, no_wrap=position == 0)
    for row in rows:
        if not options.names or row[0] in options.names:
            table.add_row(*map(Text, row))
    print_table(console, table)
    if listing.door is not None and not options.names and console.is_terminal:  # a pipe gets the table alone
        _say(
            console, f'"{listing.door.form}" names one of your own (configs: {listing.door.setting}; docs/extending.md)'
        )


def _show_settings(console: Console, names: list[str]) -> None:
    """Print the settings of some sections or of all, section by section."""
    sections = section_meanings()
    for number, (section, own) in enumerate(groupby(find_settings(names), key=lambda setting: setting.section)):
        if number:
            print_line(console, "")
        _say(console, f"{section or 'the run itself'}: {sections[section]}", style="bold")
        for setting in own:
            _say(console, f"{setting.key} = {setting.default}{_of_methods(setting)}  ({setting.allowed})", indent=2)
            _say(console, setting.meaning, indent=6)


def _of_methods(setting: Setting) -> str:
    """Return the defaults that methods have of their own, by value."""
    by_value: dict[str, list[str]] = {}
    for method, value in setting.of_methods.items():
        by_value.setdefault(value, []).append(method)
    return "".join(f"; {value} with {', '.join(methods)}" for value, methods in by_value.items())


def _say(console: Console, text: str, *, indent: int = 0, style: str = "") -> None:
    """Print a paragraph: wrapped on a terminal, in one line elsewhere."""
    if console.is_terminal:
        console.print(Padding(Text(text, style=style), (0, 0, 0, indent)))
    else:
        print_line(console, " " * indent + text)


def _method_rows() -> Iterable[tuple[str, ...]]:
    for name, row in METHODS.items():
        facts = {
            "channels selected": row.selects,
            "one set of channels for all": row.static_mask,
            "predictor trained first": row.head_first,
            "fine-tuned before evaluation": row.fine_tunes,
            "gradients corrected": row.controls,
            "updates normalised": row.normalizes,
            "proximal pull": row.proximal,
            "linear term in the loss": row.dynamic,
            "a model of each client's own": row.personal,
            "representations contrasted": row.contrasts,
        }
        own = ", ".join(f"{section}.{key}={value}" for section, values in row.defaults.items()
                        for key, value in values.items())  # fmt: skip
        shares = "as predictor.mode says" if row.predictor_mode is None else row.shares
        yield name, row.title, shares, ", ".join(fact for fact, holds in facts.items() if holds), own, row.source


def _config_rows() -> Iterable[tuple[str, ...]]:
    for name, path in shipped_configs().items():
        yield name, f"{_COMMANDS.get(name.partition('/')[0], 'spatl run')} {name}", opening_words(path)


def _loss_rows() -> Iterable[tuple[str, ...]]:
    for task, table in LOSSES.items():
        for name in table:
            yield name, task, "yes" if name == next(iter(table)) else ""


def _rule_rows() -> Iterable[tuple[str, ...]]:
    from spatl.rounds.rules import AGGREGATION_RULES  # with which PyTorch comes, that the other tables do without

    for name, row in AGGREGATION_RULES.items():
        yield name, row.description


def _metric_rows() -> Iterable[tuple[str, ...]]:
    for task, table in METRICS.items():
        for name, metric in table.items():
            own = DEFAULT_METRICS[task]
            default = "the score" if name == own[0] else "yes" if name in own else ""
            pooled = "nearly" if metric.error is not None else "exactly"
            yield name, task, "more is better" if metric.higher_is_better else "less is better", pooled, default


def _listing(table: Mapping[str, object], door: Door, *columns: str) -> _Listing:
    """A listing of a table whose rows have attributes of the columns' names: texts, or tuples of some."""

    def rows() -> Iterable[tuple[str, ...]]:
        for name, row in table.items():
            values = (getattr(row, column) for column in columns)
            yield name, *(value if isinstance(value, str) else ", ".join(value) for value in values)

    return _Listing(("name", *columns), rows, door)


_COMMANDS: Mapping[str, str] = {
    "agent": "spatl agent evaluate",
    "bench": "spatl bench",
    "deploy": "spatl deploy init DIR",
    "paper": "spatl bench",
}
"""What a config is for, by the folder it lies in."""

LISTINGS: Mapping[str, _Listing] = {
    "methods": _Listing(("name", "title", "shares", "and", "settings of its own", "source"), _method_rows, METHOD_DOOR),
    "models": _Listing(
        ("name", "description", "predictor", "source"),
        lambda: ((name, e.description, ", ".join(e.cut), e.source) for name, e in MODELS.items()),
        MODEL_DOOR,
    ),
    "datasets": _listing(DATASETS, DATASET_DOOR, "description", "source"),
    "partitioners": _listing(PARTITIONERS, PARTITIONER_DOOR, "description", "settings", "source"),
    "codecs": _Listing(
        ("name", "number on the wire", "description"),
        lambda: ((name, str(c.number), " ".join((type(c).__doc__ or "").split())) for name, c in CODECS.items()),
        CODEC_DOOR,
    ),
    "losses": _Listing(("name", "task", "default"), _loss_rows, LOSS_DOOR),
    "metrics": _Listing(("name", "task", "direction", "pooled value", "default"), _metric_rows, METRIC_DOOR),
    "aggregation-rules": _Listing(("name", "description"), _rule_rows, AGGREGATION_DOOR),
    "selectors": _listing(SELECTORS, SELECTOR_DOOR, "description"),
    "configs": _Listing(("name", "command", "what it is"), _config_rows),
    "codec-times": _Listing(
        ("name", "bits per value", "seconds to encode", "seconds to decode", "times the least work"),
        lambda: (
            (t.name, f"{t.bits_per_value:.2f}", f"{t.encode_seconds:.3f}", f"{t.decode_seconds:.3f}", f"{t.ratio:.1f}")
            for t in codecs.measure_codecs()
        ),
    ),
    "cold-start": _Listing(
        ("in a new process", "seconds", "over torch", "CPU seconds", "over torch", "peak MB"),
        lambda: importlib.import_module("clients.device.cold_start").rows(),
    ),
}
