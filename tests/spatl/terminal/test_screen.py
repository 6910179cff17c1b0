"""What a command shows: texts of others move no cursor, wherever they stand."""

import io
import logging
import re
from pathlib import Path

from rich.table import Table
from rich.text import Text

from spatl.runs.log import PrintableRecord, TextFormatter, make_logs_printable
from spatl.terminal.screen import Screen

HOSTILE = "a\x1b[2Jb\x9bc\x1b]0;title\x07\rd\u202e"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


def shown(*renderables: object, colours: bool = False) -> str:
    stream = io.StringIO()
    screen = Screen(file=stream, width=200, force_terminal=colours, color_system="truecolor" if colours else None)
    for each in renderables:
        screen.print(each, markup=False, highlight=False)
    return stream.getvalue()


def test_control_characters_are_shown_as_question_marks_in_lines_and_tables():
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(Text(HOSTILE))
    text = shown(HOSTILE, Text(HOSTILE), table)
    assert not CONTROL.search(text)
    assert text.count("a?[2Jb?c?]0;tit") == 5


def test_colours_stay():
    text = shown(Text("red", style="red"), HOSTILE, colours=True)
    assert "\x1b[31mred\x1b[0m" in text
    assert "\x1b[2J" not in text


def test_every_console_of_the_package_is_a_screen():
    package = Path(__file__).parents[3] / "spatl"
    made = {path.name for path in package.rglob("*.py") if re.search(r"(?<!\w)Console\(", path.read_text())}
    assert made == {"tables.py"}  # which captures what a screen then shows


def test_a_log_line_moves_no_cursor_and_neither_does_its_traceback():
    before = logging.getLogRecordFactory()
    logger, stream = logging.Logger("test"), io.StringIO()
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        make_logs_printable()
        assert logging.getLogRecordFactory() is PrintableRecord
        for formatter in (None, TextFormatter(tracebacks=True)):
            handler.setFormatter(formatter)
            try:
                raise ValueError(HOSTILE)
            except ValueError:
                logger.exception("client %d: %s", 3, HOSTILE)
    finally:
        logging.setLogRecordFactory(before)
    text = stream.getvalue()
    assert not CONTROL.search(text)
    assert text.count("client 3: a?[2Jb") == 2
    assert text.count("ValueError: a?[2Jb") == 2


def test_a_name_between_colons_is_no_picture():
    """Class names, and what users call their things, are shown as they are."""
    screen = Screen(file=io.StringIO(), width=80)
    screen.print("pets:cat: labels must be 0 or more", markup=False)
    screen.print("done :fire: 3 of 4")
    assert screen.file.getvalue() == "pets:cat: labels must be 0 or more\ndone :fire: 3 of 4\n"
