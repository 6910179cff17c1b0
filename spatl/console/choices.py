"""Choices of the command line, for its parser, which is made without what they are about."""

from typing import Final

SHELLS: Final = ("bash", "zsh", "fish")
"""Shells for which `spatl completion` makes a script."""
SHOWN: Final = (
    "methods", "models", "datasets", "partitioners", "codecs", "losses", "metrics", "aggregation-rules", "selectors",
    "configs", "codec-times", "cold-start", "settings", "device",
)  # fmt: skip
"""What `spatl show` takes (`spatl.console.show.LISTINGS`, and two that are no tables)."""
