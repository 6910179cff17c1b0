"""Why a data set cannot be read, in the words and on the one line that all sources share."""

from spatl.errors import DataError


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
