"""Data sets by name, rows of a table or the user's, and what can be wrong with one on the way into memory."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spatl.data.checks import one_line
from spatl.data.dataset import Dataset
from spatl.data.datasets import DATASET_DOOR, DATASETS, TASK, DatasetEntry, is_read_from_path
from spatl.data.normalisation import Normalisation
from spatl.data.own import is_as_found
from spatl.data.tokens import with_vocabulary
from spatl.data.users import load_users_dataset
from spatl.errors import DataError, SpatlError, did_you_mean, told
from spatl.extensions.references import is_reference, row_of
from spatl.tasks.targets import TaskName

__all__ = ["DATASETS", "Dataset", "DatasetEntry", "digits", "is_read_from_path", "load_dataset"]


def load_dataset(
    name: str,
    *,
    seed: int,
    options: Mapping[str, Any] | None = None,
    task: TaskName = "classification",
    num_tokens: int | None = None,
) -> Dataset:
    """Return the data set of that name.

    Args:
        name: A key of `DATASETS`, or `"package.module:load"` for a function of the user's (`spatl.data.users`).
        seed: The run's seed; a source of fixed images ignores it.
        options: The loader's options that differ from their defaults, e.g. `{"difficulty": 0.3}`.
        task: What the targets are for, as of `task.name`.
        num_tokens: How many tokens there are, as of `data.num_tokens`; as the source says, or the largest and one, if
            not given.

    Returns:
        The whole data set, in memory on the CPU: the same for the same arguments.

    Raises:
        DataError: The name or an option is unknown, a value is out of range, an optional package is missing, or the
            data cannot be read or do not fit in memory.
    """
    dataset = _loaded(name, seed, options or {}, task)
    if dataset.task != task:
        others = ", ".join(each for each, row in DATASETS.items() if row.knows_tasks)
        raise DataError(
            f"data set {name!r} has the targets of {dataset.task}, but task.name is {task}: sources of any task are "
            f"{others}, data in memory and loaders of your own"
        )
    return dataset if num_tokens is None else with_vocabulary(dataset, num_tokens)


def _loaded(name: str, seed: int, options: Mapping[str, Any], task: TaskName) -> Dataset:
    try:
        if is_reference(name):
            return load_users_dataset(name, seed=seed, options=options, task=task)
        loader = _known_loader(name, options)
        return loader(seed, **options, **({TASK: task} if DATASETS[name].knows_tasks else {}))
    except OSError as error:  # of the path itself: too long, or behind a directory that must not be read
        if error.filename is None:
            raise DataError(f"{name}: its files cannot be read: {one_line(error)}") from error
        raise DataError(f"{name}: cannot read {error.filename}: {error.strerror}") from error
    except MemoryError as error:
        raise DataError(f"{name}: the examples do not fit in memory: take fewer or smaller ones") from error
    except SpatlError:
        raise
    except (Exception, SystemExit) as error:  # a loader of the user's own
        raise DataError(f"{name}: its loader failed: {told(error)}") from error


def _known_loader(name: str, options: Mapping[str, Any]) -> Callable[..., Dataset]:
    """Return the loader of a row of the table, if it takes the options."""
    row = row_of(name, DATASETS, DATASET_DOOR)
    known = row.options
    for option in options:
        if option not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise DataError(f"data set {name!r} has no option {option!r}{did_you_mean(option, known)}; {takes}")
    return row.loader


@lru_cache(maxsize=1)
def _digits_rows(path: Path) -> Tensor:
    """Return `[1797, 65]`, 64 pixels and the class, read once per process; nobody may change it."""
    return torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.float32))


def digits(seed: int) -> Dataset:
    """Return scikit-learn's handwritten digits: 1,797 real images `[1, 8, 8]` of 10 classes.

    The file in scikit-learn's package is read without importing it, which takes longer than importing PyTorch, and a
    deployed client would do it for every message.

    Args:
        seed: Ignored; the images are fixed.

    Raises:
        DataError: scikit-learn is not installed.
        OSError: Its file is not where it is expected.
    """
    package = find_spec("sklearn")  # an optional extra: a client on a device does without it
    if package is None or not package.submodule_search_locations:
        raise DataError("data set 'digits' needs scikit-learn: pip install 'spatl[simulation]'")
    path = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    rows = _digits_rows(path)
    images, normalisation = rows[:, :-1].reshape(-1, 1, 8, 8).contiguous(), None
    if not is_as_found():
        mean, deviation = images.mean(), images.std()
        images, normalisation = (images - mean) / deviation, Normalisation((float(mean),), (float(deviation),))
    return Dataset("digits", images, rows[:, -1].long(), num_classes=10, normalisation=normalisation, scale="channel")
