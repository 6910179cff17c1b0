"""Tables at every width, and in a pipe."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from spatl.terminal.tables import print_table
from tests.support.terminals import pipe, shown, terminal, widest_line, words_of

WORDS = st.text("abcdefgh[]/=", min_size=1, max_size=12)
TEXTS = st.lists(WORDS, min_size=1, max_size=12).map(" ".join)


def table(rows: list[list[str]], title: str | None = None) -> Table:
    made = Table(title=title)
    for place in range(len(rows[0])):
        made.add_column(f"column-{place}", no_wrap=place == 0)
    for row in rows:
        made.add_row(*map(Text, row))
    return made


ROWS = st.integers(2, 7).flatmap(
    lambda columns: st.lists(
        st.tuples(WORDS, st.lists(TEXTS, min_size=columns, max_size=columns)).map(lambda row: [row[0], *row[1]]),
        min_size=1, max_size=4,
    )
)  # fmt: skip


@pytest.mark.slow
@given(ROWS, st.sampled_from([40, 60, 80, 120, 200]))
def test_every_word_is_shown_whole_and_no_line_is_wider_than_the_terminal(rows, width):
    console = terminal(width)
    print_table(console, table(rows))
    text = shown(console)
    assert widest_line(text) <= width
    assert "…" not in text
    printed = words_of(text)
    for row in rows:
        for cell in row:
            for word in cell.split():
                assert printed.count(word) >= 1, (word, text)


@pytest.mark.slow
@given(ROWS)
def test_a_pipe_gets_one_line_per_row_with_aligned_columns(rows):
    console = pipe()
    print_table(console, table(rows, title="a title"))
    title, header, *lines = shown(console).splitlines()
    assert title == "a title"
    starts = [header.index(f"column-{place}") for place in range(len(rows[0]))]
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        cells = [line[start:stop].rstrip() for start, stop in zip(starts, [*starts[1:], None], strict=True)]
        assert cells == row


@pytest.mark.parametrize(
    ("width", "form"), [(120, "lines"), (45, "lines"), (44, "bare"), (35, "bare"), (30, "records")]
)
def test_the_form_is_the_widest_that_fits(width, form):
    """Four columns of eight characters take 32 + 5 lines + 8 blanks, or 32 + 3 to 6 blanks without."""
    console = terminal(width)
    print_table(console, table([["one", "1,000", "2,000", "3,000"], ["two", "1", "2", "3"]]))
    text = shown(console)
    assert ("┏" in text) == (form == "lines")
    assert ("column-1: 1,000" in text) == (form == "records")
