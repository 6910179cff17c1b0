"""Command `spatl report RUN`: the pictures of a finished run, drawn again from its record."""

import argparse
import shlex
from pathlib import Path

from rich.console import Console

from spatl.report.pictures import draw
from spatl.report.result import read_run
from spatl.runs.directory import config_of
from spatl.runs.files import CONFIG, CURVES, REPORT
from spatl.terminal.tables import print_line


def report(options: argparse.Namespace, console: Console) -> None:
    """Draw the curves and the report of a run.

    Raises:
        SpatlError: It is not over, its record is damaged, or matplotlib is not installed.
    """
    directory = Path(options.run)
    result = read_run(directory)
    draw(result, config_of(directory), command=shlex.join(["spatl", "run", str(directory / CONFIG)]))
    for name in (REPORT, CURVES):
        print_line(console, str(directory / name))
