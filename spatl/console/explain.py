"""Command `spatl explain RUN`: a page on what a model gets wrong, and which filters are to blame."""

import argparse
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spatl.diagnosis.explanation import Explanation
from spatl.diagnosis.explanation import explain as explain_model
from spatl.diagnosis.explanation_page import explanation_page
from spatl.diagnosis.mistakes import ExplainSettings, Tell, first_of
from spatl.diagnosis.subject import read_subject
from spatl.disk.writing import replace_file
from spatl.errors import ConfigError
from spatl.json_files import write_json
from spatl.runs.text import counted, human_percent
from spatl.saliency.choosing import check_k
from spatl.terminal.progress import live_progress
from spatl.terminal.screen import Screen
from spatl.terminal.tables import print_line, print_table
from spatl.training.device import reproducible

PAGE: Final = "explanation.html"
"""Name of the page."""
NUMBERS: Final = "explanation.json"
"""Name of the file with all its numbers."""


def explain(options: argparse.Namespace, console: Console) -> None:
    """Write the page of a model and its numbers, and print the largest groups of errors.

    Raises:
        SpatlError: It cannot be explained (`spatl.diagnosis.subject.read_subject`), or the page not be written.
    """
    settings = ExplainSettings(options.examples, options.groups, options.top_k)
    run = Path(options.run)
    subject = read_subject(
        run, client=options.client, split=options.split, device=options.device, data=options.data
    )  # fmt: skip
    check_k(settings.top_k, subject.filters)
    directory = run / _name(options) if options.out is None else Path(options.out)
    with _made(directory), \
            reproducible(1 if subject.blueprint is None else subject.blueprint.config.training.threads), \
            _told(Screen(stderr=True)) as tell:  # fmt: skip
        found, maps = explain_model(subject, settings, tell=tell)
        page = explanation_page(found, maps, subject, command=_command(options))
        write_json(directory / NUMBERS, found.to_json())
        replace_file(directory / PAGE, page.encode())
    _print(console, found)
    for name in (PAGE, NUMBERS):
        print_line(console, str(directory / name))


def _name(options: argparse.Namespace) -> str:
    client = "" if options.client is None else f"-client-{options.client}"
    return f"explanation{client}{'' if options.split == 'validation' else f'-{options.split}'}"


@contextmanager
def _made(directory: Path) -> Iterator[None]:
    """Make a directory, so that one that cannot be is told at once; it goes if nothing comes to lie in it."""
    is_new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make {directory}: {error.strerror} (--out)") from error
    try:
        yield
    finally:
        if is_new and not any(directory.iterdir()):
            directory.rmdir()


def _command(options: argparse.Namespace) -> str:
    words = ["spatl", "explain", str(options.run), "--split", options.split]
    words += [] if options.client is None else ["--client", str(options.client)]
    words += ["--examples", str(options.examples), "--groups", str(options.groups), "--top-k", str(options.top_k)]
    words += [] if options.data is None else ["--data", options.data]
    return shlex.join(words)


def _print(console: Console, found: Explanation) -> None:
    mistakes = found.mistakes
    share = human_percent(mistakes.num_errors / found.num_examples)
    print_line(
        console,
        f"{mistakes.num_errors} of {counted(found.num_examples, 'example')} ({found.about['split']} split) "
        f"{'is' if mistakes.num_errors == 1 else 'are'} wrong ({share})",
    )
    for note in found.notes:
        print_line(console, note)
    if not mistakes.groups:
        return
    table = Table()
    for column in ("true class", "taken for", "errors", "most salient", "most harmful"):
        table.add_column(column, justify="right" if column == "errors" else "left")
    for group in mistakes.groups:
        cells = (
            found.class_names[group.true], found.class_names[group.predicted], str(group.num_errors),
            first_of(group.salient), first_of(group.harmful),
        )  # fmt: skip
        table.add_row(*map(Text, cells))  # names of classes are no markup
    print_table(console, table)
    if mistakes.num_other_groups:
        rest = counted(mistakes.num_other_groups, "smaller group")
        print_line(console, f"and {counted(mistakes.num_other_errors, 'error')} in {rest}")


@contextmanager
def _told(console: Console) -> Iterator[Tell]:
    """Yield what to call with progress: a line for each task on a terminal, and nothing elsewhere."""
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    with live_progress(console, transient=True) as progress:
        tasks = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield tell
