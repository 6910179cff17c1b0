"""Tables that can be read wherever they are printed: on a terminal of any width, in a pipe, in a file.

A terminal that is wide enough shows a table with lines around it. A narrower one shows it without them, or with its
widest column wrapped; where that would leave too little, every row becomes a record, one value below the other. In a
pipe there are no lines and no limits: aligned columns as wide as they are, nothing cut.
"""

import copy

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_LONG_LINE = 10_000  # characters; wider than any table
_LEAST_WRAPPED = 28  # characters that are enough for a column of any length; for shorter ones, half of their own


def print_table(console: Console, table: Table) -> None:
    """Print a table in the widest form that fits.

    Args:
        console: Where to.
        table: Its first column names the rows.
    """
    if not (console.is_terminal or console.is_jupyter):
        _print_plain(console, table)
        return
    forms = (table, _without_lines(table))
    for form in (*forms, _without_lines(table, gap=1)):
        if natural_width(console, form) <= console.width:
            console.print(form)
            return
    for form in forms:
        if (wrapped := _wrapped(console, form)) is not None:
            console.print(wrapped)
            return
    _print_records(console, table)


def print_line(console: Console, text: str) -> None:
    """Print a line as it is: no markup, no emoji, no colours, nothing cut or broken."""
    console.print(Text(text), soft_wrap=True)


def natural_width(console: Console, table: Table) -> int:
    """Return the number of characters a table takes where nothing is wrapped."""
    return console.measure(table, options=console.options.update_width(_LONG_LINE)).maximum


def _print_plain(console: Console, table: Table) -> None:
    """Print aligned columns as wide as they are, below the title; a row is a line."""
    plain = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=table.show_header)
    for column in table.columns:
        plain.add_column(column.header, justify=column.justify)
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        plain.add_row(*(Text(" ".join(_text(cell).plain.splitlines())) for cell in cells))
    wide = Console(file=console.file, width=natural_width(console, plain), force_terminal=False, no_color=True)
    with wide.capture() as capture:
        wide.print(plain)
    if table.title:
        print_line(console, _text(table.title).plain)
    for line in capture.get().splitlines():
        print_line(console, line.rstrip())


def _without_lines(table: Table, *, gap: int = 2) -> Table:
    bare = copy.copy(table)
    bare.box, bare.pad_edge, bare.padding = None, False, (0, gap, 0, 0)
    bare.header_style = "bold"
    return bare


def _wrapped(console: Console, table: Table) -> Table | None:
    """Return the table with its widest column wrapped, so that it fits; None if too little of it would be left."""
    widths = [_widest_line(console, table, place) for place in range(len(table.columns))]
    place = max(range(len(widths)), key=widths.__getitem__)
    room = console.width - (natural_width(console, table) - widths[place])
    longest_word = max(
        (len(word) for cell in table.columns[place].cells for word in _text(cell).plain.split()), default=0
    )
    if room < max(longest_word, min(_LEAST_WRAPPED, widths[place] // 2)):
        return None
    wrapped = copy.copy(table)
    wrapped.columns = [copy.copy(column) for column in table.columns]
    for position, column in enumerate(wrapped.columns):
        column.no_wrap = position != place
    wrapped.columns[place].width = room
    return wrapped


def _print_records(console: Console, table: Table) -> None:
    """Print a row as its name and, below it, its other values with their columns' names; empty ones are left out."""
    if table.title:
        console.print(Text(_text(table.title).plain, style="table.title"))
    names, *columns = table.columns
    for row, cell in enumerate(names.cells):
        name = _text(cell).plain
        told = f"{_text(names.header).plain} {name}" if name.isdecimal() else name  # a number alone says nothing
        console.print(Text(told, style="bold"))
        for column in columns:
            value = " ".join(_text(list(column.cells)[row]).plain.split())
            if value:
                header = _text(column.header).plain
                console.print(Padding(Text(f"{header}: {value}" if header else value), (0, 0, 0, 4)))


def _widest_line(console: Console, table: Table, place: int) -> int:
    column = table.columns[place]
    texts = [_text(cell) for cell in (*([column.header] if table.show_header else []), *column.cells)]
    return max((line.cell_len for text in texts for line in text.split("\n", allow_blank=True)), default=0)


def _text(cell: object) -> Text:
    """Return the text of a cell: strings are rich's markup, as in the table."""
    return cell if isinstance(cell, Text) else Text.from_markup(str(cell))
