"""Data sets by name, each with the loader that makes it.

The table is the only place where a name becomes a data set; adding a source is adding a row. A loader takes the seed
and its options as keyword arguments, checks their values and holds their defaults.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from spatl.data.checks import one_line
from spatl.data.cifar import cifar10, cifar100
from spatl.data.dataset import Dataset
from spatl.data.files import folder, npz
from spatl.data.hub import huggingface
from spatl.data.idx import idx
from spatl.data.leaf import femnist
from spatl.data.memory import IN_MEMORY, in_memory
from spatl.data.normalisation import Normalisation
from spatl.data.own import is_as_found
from spatl.data.synthetic import bytes_of_synthetic, synthetic
from spatl.data.table import table
from spatl.data.tokens import with_vocabulary
from spatl.data.users import DATASET_DOOR, load_users_dataset
from spatl.errors import DataError, SpatlError, did_you_mean, told
from spatl.extensions.references import is_reference, row_of
from spatl.tasks.targets import TaskName

__all__ = ["DATASETS", "Dataset", "DatasetEntry", "digits", "is_read_from_path", "load_dataset"]


TASK: Final = "task"
"""The keyword that loaders take which make targets of other tasks than classification."""


@dataclass(frozen=True)
class DatasetEntry:
    """Entry of `DATASETS`.

    Attributes:
        loader: `loader(seed, **options)` returns the data set; every option is a keyword with a default.
        description: One line saying what the images are.
        source: Where the images come from.
        num_bytes: Memory that making them takes, by the options; None for images that are read.
    """

    loader: Callable[..., Dataset]
    description: str
    source: str
    num_bytes: Callable[[Mapping[str, Any]], int] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Options that the loader takes, with their defaults."""
        parameters = inspect.signature(self.loader).parameters.values()
        named = [each for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY and each.name != TASK]
        return {each.name: each.default for each in named}

    @property
    def knows_tasks(self) -> bool:
        """Return whether the loader makes targets of other tasks than classification."""
        return TASK in inspect.signature(self.loader).parameters


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


def is_read_from_path(name: str) -> bool:
    """Return whether a data set is read from a path: a row with that option, or any of the user's.

    The user's is not imported to find out; one that takes no `path` says so when it is given one.
    """
    return is_reference(name) or "path" in DATASETS[name].options


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
    rows = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.float32))  # 64 pixels and the class
    images, normalisation = rows[:, :-1].reshape(-1, 1, 8, 8).contiguous(), None
    if not is_as_found():
        mean, deviation = images.mean(), images.std()
        images, normalisation = (images - mean) / deviation, Normalisation((float(mean),), (float(deviation),))
    return Dataset("digits", images, rows[:, -1].long(), num_classes=10, normalisation=normalisation, scale="channel")


DATASETS: dict[str, DatasetEntry] = {
    "cifar10": DatasetEntry(
        loader=cifar10,
        description="60,000 colour 32x32 images of things and animals, 10 classes",
        source="Krizhevsky 2009: the binary version on disk, or the hub",
    ),
    "cifar100": DatasetEntry(
        loader=cifar100,
        description="60,000 colour 32x32 images, 100 classes in 20 superclasses",
        source="Krizhevsky 2009: the binary version on disk, or the hub",
    ),
    "digits": DatasetEntry(
        loader=digits,
        description="1,797 grey 8x8 images of handwritten digits, 10 classes",
        source="scikit-learn's load_digits (UCI optical recognition of handwritten digits, test part)",
    ),
    "femnist": DatasetEntry(
        loader=femnist,
        description="grey 28x28 images of handwritten characters, 62 classes, with their writers",
        source="LEAF (Caldas et al. 2018): its JSON files on disk, or the hub",
    ),
    "folder": DatasetEntry(
        loader=folder,
        description="your image files, one subfolder per class",
        source="a directory on disk",
    ),
    "huggingface": DatasetEntry(
        loader=huggingface,
        description="any image classification data set that the library `datasets` reads",
        source="Parquet or Arrow files on disk, or the Hugging Face hub by name",
    ),
    "idx": DatasetEntry(
        loader=idx,
        description="images in files of MNIST's format, with the official test set",
        source="a directory on disk: MNIST, Fashion-MNIST (Debian: dataset-fashion-mnist), EMNIST, or your own",
    ),
    IN_MEMORY: DatasetEntry(
        loader=in_memory,
        description="what a program hands to spatl.run(config, data=...)",
        source="the memory of the process that runs",
    ),
    "npz": DatasetEntry(
        loader=npz,
        description="your NumPy arrays: images and labels, or inputs and targets, and perhaps whose they are",
        source="a file of numpy.savez",
    ),
    "table": DatasetEntry(
        loader=table,
        description="your table: a row per example, columns of numbers and categories, a target and perhaps an owner",
        source="CSV or Parquet files on disk, what the library `datasets` saved, or the hub",
    ),
    "synthetic": DatasetEntry(
        loader=synthetic,
        description="procedural 32x32 colour images: classes are arrangements of shared textures, of chosen difficulty",
        source="generated from the seed",
        num_bytes=bytes_of_synthetic,
    ),
}
