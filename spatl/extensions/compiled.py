"""Extensions that are compiled where the installation finds a compiler; what they do, NumPy and PyTorch do as well."""

import importlib
import os
from types import ModuleType
from typing import Final

NO_EXTENSION: Final = "SPATL_NO_EXTENSION"
"""Variable of the environment that has NumPy do the work wherever it is set."""


def extension(name: str) -> ModuleType | None:
    """Return a compiled module; None where it was not built for this Python, or is not wanted."""
    if os.environ.get(NO_EXTENSION):
        return None
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
