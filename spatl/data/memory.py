"""Data sets in the memory of the process that runs, as a notebook has them, named by a digest of what they hold."""

from spatl.data.dataset import Dataset
from spatl.errors import DataError

_kept: dict[str, Dataset] = {}


def keep_in_memory(dataset: Dataset) -> str:
    """Keep a data set for as long as the process lives; return the key that a config names it by.

    The key is a digest of what it holds, so that a run that goes on does so with the same examples or not at all.
    """
    key = dataset.digest().hex()[:32]
    _kept[key] = dataset
    return key


def forget_data() -> None:
    """Let go of all data sets in memory."""
    _kept.clear()


def in_memory(seed: int, *, key: str = "") -> Dataset:
    """Return a data set that this process was given.

    Args:
        seed: Ignored; the examples are fixed.
        key: What `keep_in_memory` returned.

    Raises:
        DataError: This process has none of that key.
    """
    if key not in _kept:
        raise DataError(
            "the data were in the memory of the program that started the run and are not here: hand the same ones "
            "over, spatl.resume(DIRECTORY, data=...), or write them to a file (numpy.savez) and set data.name: npz"
        )
    return _kept[key]
