"""Command `spatl saliency experiment CONFIG`: claims about parameter-space saliency, each beside its controls."""

import argparse
import shlex
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from spatl.artifacts.description import check_classifies
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config, read_config
from spatl.experiments.claims import CLAIM_TABLE
from spatl.experiments.figure import draw_outcome
from spatl.experiments.measures import Row
from spatl.experiments.run import PICTURE, RESULT, Outcome, conditions, quantities, run_experiments, ways, write_outcome
from spatl.runs.directory import fresh_directory
from spatl.terminal.progress import live_progress
from spatl.terminal.screen import Screen
from spatl.terminal.tables import print_line, print_table


def experiment(options: argparse.Namespace, console: Console) -> None:
    """Run the experiments of a config, print a table for each claim, and write numbers and picture.

    Raises:
        SpatlError: A mistake of the user's: in the config, or networks that make no errors.
    """
    config = _config(options)
    directory = fresh_directory(options.out, name="saliency")
    watching = Screen(stderr=True)
    with live_progress(watching, transient=True) as bars:
        bar = bars.add_task("networks and claims", total=None)
        outcome = run_experiments(
            config,
            lambda what, done, total: _show(watching, bars.update, bar, what, done, total),
        )
    write_outcome(directory, outcome, config, _command(options))
    for claim in config.saliency.claims:
        _print_claim(console, claim, outcome)
    title = f"{config.model.name} on {config.data.name}: {_networks(outcome)}"
    draw_outcome(outcome, directory / PICTURE, title)
    print_line(console, title)
    print_line(console, "a difference from the control stands in brackets with its standard errors: over the examples"
               + (", and over the networks" if len(outcome.networks) > 1 else ""))  # fmt: skip
    for name in (RESULT, PICTURE):
        print_line(console, str(directory / name))


def _config(options: argparse.Namespace) -> ExperimentConfig:
    values = read_config(options.config, options.overrides)
    own = dict(values.get("saliency") or {})
    own |= {"claims": options.claims} if options.claims else {}
    own |= {"seeds": options.seeds} if options.seeds else {}
    config = parse_config({**values, "saliency": own})
    check_classifies(config.task.name, what="spatl saliency experiment")
    return config


def _show(console: Console, update: object, bar: object, what: str, done: int, total: int) -> None:
    assert callable(update)
    update(bar, completed=done, total=total, description=what)
    if not console.is_terminal:
        console.print(f"{done}/{total}  {what}", highlight=False)


def _print_claim(console: Console, claim: str, outcome: Outcome) -> None:
    rows = outcome.of(claim)
    print_line(console, f"{claim}: {CLAIM_TABLE[claim].title}")
    for quantity in quantities(rows):
        print_table(console, _table(quantity, [row for row in rows if row.quantity == quantity]))


def _table(quantity: str, rows: Sequence[Row]) -> Table:
    found = {(row.way, row.setting): row for row in rows}
    control = next(row.way for row in rows if row.control is None)
    table = Table(title=f"{quantity}, against {control}")
    table.add_column("")
    for setting in conditions(rows):
        table.add_column(setting, justify="right")
    for way in ways(rows):
        table.add_row(way, *(_cell(found[way, setting]) for setting in conditions(rows)))
    return table


def _cell(row: Row) -> str:
    if row.gain is None:
        return f"{row.mean:.3f}"
    errors = [f"{row.gain_error:.3f}"] + ([] if row.gain_spread is None else [f"{row.gain_spread:.3f}"])
    return f"{row.mean:.3f} ({row.gain:+.3f} ± {', '.join(errors)})"


def _networks(outcome: Outcome) -> str:
    accuracies = ", ".join(f"{100 * each['accuracy']:.1f}" for each in outcome.networks)
    errors = sum(each["errors"] for each in outcome.networks)
    return f"{len(outcome.networks)} networks ({accuracies} %), {errors} errors"


def _command(options: argparse.Namespace) -> str:
    parts = ["spatl", "saliency", "experiment", options.config]
    for flag, values in (("--claims", options.claims), ("--seeds", options.seeds)):
        if values:
            parts += [flag, ",".join(map(str, values))]
    return shlex.join([*parts, *(part for text in options.overrides for part in ("--set", text))])
