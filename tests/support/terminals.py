"""What a terminal of some width shows, and a pipe: for tests of what is printed."""

import re
from io import StringIO

from rich.console import Console

_STYLE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
_LINES = str.maketrans("", "", "".join(map(chr, range(0x2500, 0x2580))))


def terminal(width: int) -> Console:
    """A terminal without colours."""
    return Console(file=StringIO(), width=width, force_terminal=True, no_color=True, legacy_windows=False)


def pipe() -> Console:
    """What is no terminal; its width should not matter."""
    return Console(file=StringIO(), width=80, force_terminal=False)


def shown(console: Console) -> str:
    """What was printed, without styles."""
    assert isinstance(console.file, StringIO)
    return _STYLE.sub("", console.file.getvalue())


def as_terminal(monkeypatch, width: int) -> None:
    """Make what the command line prints go to a terminal of this width."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))


def words_of(text: str) -> list[str]:
    """The words of a text, without styles and the lines of tables."""
    return _STYLE.sub("", text).translate(_LINES).split()


def widest_line(text: str) -> int:
    """The number of characters of its longest line."""
    return max(len(line.rstrip()) for line in _STYLE.sub("", text).splitlines())
