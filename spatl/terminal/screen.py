"""Screen of a command: rich's console, on which texts of others cannot move the cursor."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from spatl.errors import printable


class Screen(Console):
    """Console that shows control characters of a text as question marks.

    Error reasons, class names and keys of a run may be another machine's, or stand in files that anybody may have
    written. What is rendered goes through here whatever it is part of: a line, a table, a bar. No name between colons
    becomes a picture: it may be part of a message.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of what is shown; rich's own control codes are segments of a kind of their own."""
        for segment in super().render(renderable, options):
            if segment.control is None and not segment.text.isprintable():
                yield Segment(printable(segment.text), segment.style)
            else:
                yield segment
