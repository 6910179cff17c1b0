"""Command `spatl bench`: options in, progress while it runs, a table and paths at the end."""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import TaskID
from rich.table import Table

from spatl.bench.ablations import ablation_table
from spatl.bench.costs import HELD_ROUNDS
from spatl.bench.plan import Plan, make_plan, unequal_optimizers
from spatl.bench.results import Record, by_row, meaningful, shown_target, target_table
from spatl.bench.score import score_of
from spatl.errors import ConfigError
from spatl.extensions.late import LateModule
from spatl.runs.directory import fresh_directory
from spatl.runs.records import latest_accuracy
from spatl.terminal.progress import live_progress
from spatl.terminal.tables import print_line, print_table

if TYPE_CHECKING:
    from spatl.bench import run as runs
    from spatl.bench import tables
    from spatl.bench.jobs import Event, OnEvent
    from spatl.bench.tuning import Tuned
else:  # with which PyTorch comes, once the plan is made
    runs, tables = LateModule("spatl.bench.run"), LateModule("spatl.bench.tables")


def run_bench(options: argparse.Namespace, console: Console) -> None:
    """Run the command with its parsed options.

    Raises:
        SpatlError: A mistake of the user's, or runs that failed.
    """
    if options.workers < 0:
        raise ConfigError(f"--workers must be 0 or more, got {options.workers}")
    plan = make_plan(
        options.configs,
        overrides=options.overrides,
        methods=options.methods,
        seeds=options.seeds,
        targets=options.target,
    )
    if not options.tune and (note := unequal_optimizers(plan)):
        console.print(f"warning: {note}", highlight=False, markup=False, soft_wrap=True)
    if options.report:
        if not options.out:
            raise ConfigError("--report is of a benchmark that was started before: name its directory (--out)")
        directory = Path(options.out).absolute()
        _show(console, plan, runs.report(plan, directory, tune=options.tune, command=_command(options)), directory)
        return
    directory = Path(options.out).absolute() if options.out else fresh_directory(None, name="bench")
    with BenchProgress(console, plan) as progress:
        records = runs.bench(
            plan,
            directory,
            tune=options.tune,
            workers=options.workers,
            command=_command(options),
            on_stage=progress.stage,
            on_tuned=progress.tuned,
        )
    _show(console, plan, records, directory)


def _show(console: Console, plan: Plan, records: Sequence[Record], directory: Path) -> None:
    """Print the table and where the reports are."""
    print_records(console, plan, records)
    for name in ("report.html", "bench.md", "bench.json", "curves.png", "bytes.png"):
        print_line(console, str(directory / name))


def _command(options: argparse.Namespace) -> str:
    """Return the command as one would type it again, without the directory."""
    parts = ["spatl", "bench", *options.configs]
    for flag, values in (("--methods", options.methods), ("--seeds", options.seeds), ("--target", options.target)):
        if values:
            parts += [flag, ",".join(map(str, values))]
    parts += [part for text in options.overrides for part in ("--set", text)]
    return shlex.join([*parts, *(["--tune"] if options.tune else [])])


class BenchProgress:
    """Progress of the runs: live bars on a terminal, a line per finished run elsewhere."""

    def __init__(self, console: Console, plan: Plan) -> None:
        self._console = console
        self._rounds = plan.first.rounds
        self._score = score_of(plan.first)
        self._tune_rounds = plan.bench.tune_rounds or self._rounds
        self._live = console.is_terminal
        self._bars = live_progress(console, transient=True)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "BenchProgress":
        if self._live:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def stage(self, title: str, number: int, finished: int) -> "OnEvent":
        """Begin a stage and return what shows its events."""
        if finished:
            self._console.print(f"{title}: {finished} of {number} are finished already", highlight=False)
        overall = self._bars.add_task(title, total=number, completed=finished)
        rounds = self._tune_rounds if title == "tuning" else self._rounds
        done = finished
        latest: dict[str, str] = {}

        def on_event(event: "Event") -> None:
            nonlocal done
            if event.kind == "started":
                self._tasks[event.job] = self._bars.add_task(f"  {event.job}", total=rounds, unit="round")
            elif event.kind == "round" and event.row is not None:
                latest[event.job] = f"{self._score.metric} {self._score.text(latest_accuracy(event.row))}"
                self._bars.update(self._tasks[event.job], completed=event.row["round"], notes=(latest[event.job],))
            elif event.kind == "ended":
                done += event.error is None
                self._bars.remove_task(self._tasks.pop(event.job))
                self._bars.update(overall, completed=done)
                outcome = f"failed: {event.error}" if event.error else latest.get(event.job, "stopped")
                if not self._live or event.error:
                    line = f"{title}: {done}/{number}  {event.job}: {outcome}"
                    self._console.print(line, highlight=False, soft_wrap=True, markup=False)

        return on_event

    def tuned(self, tuned: "list[Tuned]") -> None:
        """Print the grid."""
        rows = tables.tuning_rows(tuned, self._score)
        self._console.print(
            f"Learning rates: {tables.tuning_note(tuned, self._score)}", highlight=False, soft_wrap=True
        )
        print_table(self._console, _table(rows))
        for each in tuned:
            for edge in each.edges:
                self._console.print(
                    f"warning: the best learning rate of {each.label}, {each.best.text}, is at the edge of the grid; "
                    f"widen {edge}",
                    highlight=False, soft_wrap=True,
                )  # fmt: skip


def print_records(console: Console, plan: Plan, records: Sequence[Record]) -> None:
    """Print one row per method: the headline target, held, and the final accuracy."""
    config, score = plan.first, score_of(plan.first)
    place = shown_target(records)
    target = score.text(plan.bench.targets[place])
    heading = f"{config.data.name}, {config.partition.num_clients} clients, {_seeds(plan)}: "
    of = "" if score.is_accuracy else f"{score.metric} "
    console.print(f"{heading}cost until {of}{target} is held for {HELD_ROUNDS} rounds", highlight=False)
    table = Table()
    columns = ("method", "reached", "rounds", "bytes", "ratio to FedAvg", f"final {score.metric}")
    for column in columns:
        is_name = column == "method"
        table.add_column(column, justify="left" if is_name else "right", no_wrap=is_name)
    rows = by_row(records)
    lines = target_table(records, place)
    for line, cells in zip(lines, tables.cost_rows(lines, rows), strict=True):
        table.add_row(
            line.label,
            f"{line.reached}/{line.seeds}",
            cells["rounds"],
            cells["bytes in total"],
            cells["ratio to FedAvg"].replace(" (", "\n(").replace("; ", ";\n"),
            tables.final_accuracy(rows[line.label]).replace(" (", "\n("),
        )
    print_table(console, table)
    if meaningful(records, place) is False:
        console.print("training alone reaches this target in some round: it needs no federation", highlight=False)
    if lost := tables.ablation_rows(ablation_table(records, place), score):
        console.print(f"what each idea is worth, at {of}{target}:", highlight=False)
        print_table(console, _table(lost))


def _table(rows: Sequence[Mapping[str, str]]) -> Table:
    """Return a table of rows of plain text by column, the first of which names them."""
    table = Table()
    for place, column in enumerate(rows[0]):
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*map(escape, row.values()))
    return table


def _seeds(plan: Plan) -> str:
    number = len(plan.bench.seeds)
    return f"{number} seeds" if number > 1 else "1 seed"
