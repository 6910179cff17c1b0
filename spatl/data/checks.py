"""Checks of what the options of a loader hold, and where their paths lead.

A message names the data set, the option, what is allowed, and what came.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from spatl.errors import DataError


def check_integer(dataset: str, option: str, value: object, low: int, high: int) -> None:
    """Raise a `DataError` unless the value is a whole number in `[low, high]`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise DataError(f"{dataset}: {option} must be a whole number in [{low}, {high}], got {value!r}")


def check_switch(dataset: str, option: str, value: object) -> None:
    """Raise a `DataError` unless the value is true or false."""
    if not isinstance(value, bool):
        raise DataError(f"{dataset}: {option} must be true or false, got {value!r}")


def check_choice(dataset: str, option: str, value: object, allowed: Sequence[str]) -> None:
    """Raise a `DataError` unless the value is one of the allowed ones."""
    if value not in allowed:
        raise DataError(f"{dataset}: {option} must be {' or '.join(allowed)}, got {value!r}")


def check_text(dataset: str, option: str, value: object) -> None:
    """Raise a `DataError` unless the value is a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise DataError(f"{dataset}: {option} must be a text, got {value!r}")


def path_option(dataset: str, value: object, *, expected: str) -> Path:
    """Return the option `path` as an absolute path; a relative one counts from the working directory.

    Args:
        dataset: The data set's name.
        value: What the option holds.
        expected: What the path should lead to, e.g. `"a directory with one subfolder per class"`.

    Raises:
        DataError: The option is missing or not a text.
    """
    if not isinstance(value, str) or not value:
        raise DataError(f"{dataset}: data.options.path must name {expected}, got {value!r}")
    return Path(os.path.expanduser(value)).absolute()  # unlike Path's, it leaves an unknown user's home as it is


def check_path_is_read(dataset: str, path: object, *, default: str) -> None:
    """Raise a `DataError` if the user has set a path although the hub is to be read; the default cannot be told."""
    if path != default:
        raise DataError(
            f"{dataset}: data.options.path is not read where data.options.hub is true, got {path!r}: leave one of "
            "them out"
        )


def is_hidden(file: Path, root: Path) -> bool:
    """Return whether the name of a file, or of a directory on the way to it from the root, begins with a dot."""
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def missing_package(needed_by: str, package: str, *, advice: str = "") -> DataError:
    """Return the error that says which package of the extra `data` something needs.

    Args:
        needed_by: What needs it, e.g. `"data set 'folder'"`.
        package: The package's name.
        advice: What does without it.
    """
    return DataError(f"{needed_by} needs {package}: pip install 'spatl[data]'{advice and f'; {advice}'}")


def one_line(error: Exception) -> str:
    """Return what an error says, on one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
