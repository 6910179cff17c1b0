"""Progress of a run: a live line on a terminal or below a notebook's cell, a line per round elsewhere.

A live line has more to say than a narrow terminal holds. What it is about comes first: the method, the bar, the round
and the accuracy; then what went wrong, bytes, time and the cost of selecting, as far as there is room.
"""

import importlib
import sys
from dataclasses import dataclass
from html import escape
from typing import Any, Protocol, Self

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.progress import Progress, ProgressColumn, Task, TaskID
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from spatl.config.experiment import ExperimentConfig
from spatl.runs.records import global_accuracy, latest_accuracy
from spatl.runs.scores import human_score, metric_of
from spatl.runs.text import human_bytes, human_percent
from spatl.terminal.screen import Screen
from spatl.terminal.tables import print_line

_BAR = range(10, 41)  # characters; less only where not even the accuracy would fit
_LEAST_BAR = 4
_LEAST_NAME = 8


class RunProgress(Protocol):
    """Display of a run between its beginning and its end; called with every round."""

    def __enter__(self) -> Self:
        """Begin to show it."""

    def __exit__(self, *exception: object) -> None:
        """Stop; what is shown stays."""

    def on_round(self, row: dict[str, Any]) -> None:
        """Show a round of the federation."""

    def on_round_alone(self, row: dict[str, Any]) -> None:
        """Show a round of the same clients training alone."""


def progress_of(console: Console, config: ExperimentConfig) -> RunProgress:
    """Return the display of a run's progress that suits a console."""
    if console.is_jupyter:
        return NotebookProgress(config)
    return (_Live if console.is_terminal else _Lines)(console, config)


def watched_console() -> Console | None:
    """Return the console on which somebody watches a run that was started from Python; None where nobody does.

    That is a notebook, or the terminal's error stream, so that a script's own output stays its own. Output that goes to
    a file, a pipe or a test is nobody's to watch.
    """
    console = Screen(stderr=True)
    return console if console.is_jupyter or (console.is_terminal and sys.stdout.isatty()) else None


class LineColumn(ProgressColumn):
    """Column of a task's whole line, laid out for the width there is.

    Fields of a task: `unit`, what is counted; `notes`, the most important first; `late_notes`, less so than the time.
    """

    max_refresh = None

    def __init__(self) -> None:
        super().__init__()
        self.progress: Progress | None = None

    def render(self, task: Task) -> "TaskLine":
        """Return the line of a task, its name as wide as that of the longest."""
        tasks = self.progress.tasks if self.progress is not None else [task]
        total = None if task.total is None else int(task.total)
        seconds = int(task.elapsed or 0)
        time = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        notes = (*task.fields.get("notes", ()), time, *task.fields.get("late_notes", ()))
        longest = max(len(each.description) for each in tasks)
        return TaskLine(task.description, longest, task.fields.get("unit", ""), int(task.completed), total, notes)


@dataclass(frozen=True)
class TaskLine:
    """Line of progress of one task.

    Attributes:
        name: What is going on.
        name_width: Characters of the longest name among lines that stand below each other.
        unit: What is counted.
        completed: How many are done.
        total: How many there will be; None if that is not known.
        notes: The rest, the most important first; the first is shown if anything fits.
    """

    name: str
    name_width: int
    unit: str
    completed: int
    total: int | None
    notes: tuple[str, ...]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Take the whole width."""
        return Measurement(options.max_width, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay it out for a width."""
        of = "?" if self.total is None else str(self.total)
        counter = f"{self.completed:>{len(of)}}/{of}"
        first, *others = self.notes or ("",)
        for unit, least in ((f"{self.unit} ", self.name_width), (f"{self.unit} ", _LEAST_NAME), ("", _LEAST_NAME)):
            texts = list(filter(None, [f"{unit}{counter}".strip(), first]))
            taken = 1 + sum(len(text) + 2 for text in texts) - 1  # and a blank after the name and the bar
            name_width = min(self.name_width, max(least, options.max_width - taken - _BAR.start))
            room = options.max_width - taken - name_width
            if room >= (_BAR.start if least == self.name_width else _LEAST_BAR):
                break
        for note in others:
            if room - len(note) - 2 < _BAR.start:
                break
            texts.append(note)
            room -= len(note) + 2
        bar = min(room, _BAR.stop - 1)
        name = self.name if len(self.name) <= name_width else f"{self.name[: name_width - 1]}…"
        line = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
        total = None if self.total is None else float(self.total)
        cells: list[tuple[int | None, RenderableType]] = [(name_width, Text(name)), (None, Text("  ".join(texts)))]
        if bar >= _LEAST_BAR:
            shown = ProgressBar(total=total, completed=self.completed, width=bar, pulse=total is None)
            cells.insert(1, (bar, shown))
        for width, _ in cells:
            line.add_column(width=width, no_wrap=True, overflow="crop")
        line.add_row(*(cell for _, cell in cells))
        yield line


def live_progress(console: Console, **settings: Any) -> Progress:
    """Return a display of tasks whose lines fit (`LineColumn`)."""
    column = LineColumn()
    column.progress = Progress(column, console=console, **settings)
    return column.progress


class _Live:
    """Display of a live line for each part of the run."""

    def __init__(self, console: Console, config: ExperimentConfig) -> None:
        self._config = config
        self._bytes = 0
        self._progress = live_progress(console)
        self._task = self._add(config.row.title, "starting")
        self._alone: TaskID | None = None

    def _add(self, name: str, *notes: str) -> TaskID:
        return self._progress.add_task(name, total=self._config.rounds, unit="round", notes=notes)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def on_round(self, row: dict[str, Any]) -> None:
        self._bytes += row["uplink_bytes"] + row["downlink_bytes"]
        notes = (_accuracy(row), *_troubles(row), human_bytes(self._bytes))
        late = tuple(filter(None, [_selection_cost(row)]))
        self._progress.update(self._task, completed=row["round"], notes=notes, late_notes=late)

    def on_round_alone(self, row: dict[str, Any]) -> None:
        if self._alone is None:
            self._alone = self._add("training alone")
        self._progress.update(self._alone, completed=row["round"], notes=(_accuracy(row),))


class _Lines:
    """Display of a line per round, for logs."""

    def __init__(self, console: Console, config: ExperimentConfig) -> None:
        self._console = console
        self._config = config

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def on_round(self, row: dict[str, Any]) -> None:
        self._line(self._config.row.title, row)

    def on_round_alone(self, row: dict[str, Any]) -> None:
        self._line("training alone", row)

    def _line(self, title: str, row: dict[str, Any]) -> None:
        parts = [
            f"{title}: round {row['round']}/{self._config.rounds}", _accuracy(row),
            f"up {human_bytes(row['uplink_bytes'])}", f"down {human_bytes(row['downlink_bytes'])}",
            f"refused {row['rejected']}", f"missing {row['missing']}",
            "skipped: too few replies" if row["skipped"] else "", _selection_cost(row), f"{row['seconds']:.1f} s",
        ]  # fmt: skip
        print_line(self._console, "  ".join(filter(None, parts)))


class NotebookProgress:
    """Display of a line for each part of the run below a notebook's cell, renewed with every round."""

    def __init__(self, config: ExperimentConfig) -> None:
        # Only a notebook has IPython; nothing else here needs it.
        self._output = importlib.import_module("IPython.display")
        self._config = config
        self._handle: Any = None
        self._bytes = 0
        self._lines: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._lines[self._config.row.title] = self._bar(0, "starting")
        self._handle = self._output.display(self._output.HTML(self._html()), display_id=True)
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def on_round(self, row: dict[str, Any]) -> None:
        """Show a round of the run."""
        self._bytes += row["uplink_bytes"] + row["downlink_bytes"]
        notes = (_accuracy(row), *_troubles(row), human_bytes(self._bytes))
        self._show(self._config.row.title, row["round"], *notes)

    def on_round_alone(self, row: dict[str, Any]) -> None:
        """Show a round of the clients that train alone."""
        self._show("training alone", row["round"], _accuracy(row))

    def _show(self, name: str, done: int, *notes: str) -> None:
        self._lines[name] = self._bar(done, *notes)
        self._handle.update(self._output.HTML(self._html()))

    def _bar(self, done: int, *notes: str) -> str:
        total = self._config.rounds
        words = escape(", ".join((f"round {done}/{total}", *notes)))
        return f'<progress value="{done}" max="{total}"></progress></td><td style="text-align: left">{words}'

    def _html(self) -> str:
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{line}</td></tr>" for name, line in self._lines.items())
        return f"<table>{rows}</table>"


def _accuracy(row: dict[str, Any]) -> str:
    measured = global_accuracy(row)
    metric = metric_of(row)
    told = "" if measured is None else f", server's model {human_score(measured, metric)}"
    return f"{metric} {human_score(latest_accuracy(row), metric)}{told}"


def _troubles(row: dict[str, Any]) -> list[str]:
    """Name what went wrong in a round."""
    named = {"refused": row["rejected"], "missing": row["missing"]}
    return [f"{number} {name}" for name, number in named.items() if number] + (["skipped"] if row["skipped"] else [])


def _selection_cost(row: dict[str, Any]) -> str:
    """Write the time of selection beside that of training, and of the decision alone, for selectors that decide."""
    training = row["training_seconds"]
    if not (row["decision_seconds"] and training):
        return ""
    selection, decision = (human_percent(row[f"{part}_seconds"] / training) for part in ("selection", "decision"))
    return f"selection {selection} of training (deciding {decision})"
