"""Numbers as people read them."""

import pytest

from spatl.runs.text import counted


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(0, "error", "0 errors"), (1, "error", "1 error"), (1, "smaller group", "1 smaller group"),
     (1200, "error", "1,200 errors")],
)  # fmt: skip
def test_one_thing_is_told_in_the_singular(number, noun, text):
    assert counted(number, noun) == text
