"""Table of data sets, by the name in a config: facts, and the loader of each, which is imported when it is asked.

The table is the only place where a name becomes a data set; adding a source is adding a row. A loader takes the seed
and its options as keyword arguments, checks their values and holds their defaults.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from spatl.errors import DataError
from spatl.extensions.late import LateModule
from spatl.extensions.references import Door, is_reference

if TYPE_CHECKING:
    from spatl.data import cifar, files, hub, idx, leaf, memory, sources, synthetic, table
    from spatl.data.dataset import Dataset
else:
    cifar, files, hub, idx, leaf, memory, sources, synthetic, table = (
        LateModule(f"spatl.data.{name}")
        for name in ("cifar", "files", "hub", "idx", "leaf", "memory", "sources", "synthetic", "table")
    )  # fmt: skip

DATASET_DOOR: Final = Door(
    "data set", "data.name", "package.module:load", error=DataError,
    expected="a function that returns a spatl.data.Dataset, or inputs and targets",
)  # fmt: skip
IN_MEMORY: Final = "in-memory"
"""The name of data that a program hands to `spatl.run`."""
TASK: Final = "task"
"""The keyword that loaders take which make targets of other tasks than classification."""


@dataclass(frozen=True)
class DatasetEntry:
    """Entry of `DATASETS`.

    Attributes:
        loader: `loader(seed, **options)` returns the data set; every option is a keyword with a default.
        description: One line saying what the images are.
        source: Where the images come from.
        reads_path: Whether `path` is one of its options: where the images lie.
        default_path: That option's default; None where a config must name it.
        num_bytes: Memory that making them takes, by the options; None for images that are read.
    """

    loader: "Callable[..., Dataset]"
    description: str
    source: str
    reads_path: bool = False
    default_path: str | None = None
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


def is_read_from_path(name: str) -> bool:
    """Return whether a data set is read from a path: a row with that option, or any of the user's.

    The user's is not imported to find out; one that takes no `path` says so when it is given one.
    """
    return is_reference(name) or DATASETS[name].reads_path


DATASETS: dict[str, DatasetEntry] = {
    "cifar10": DatasetEntry(
        loader=cifar.cifar10,
        description="60,000 colour 32x32 images of things and animals, 10 classes",
        source="Krizhevsky 2009: the binary version on disk, or the hub",
        reads_path=True,
        default_path="data",
    ),
    "cifar100": DatasetEntry(
        loader=cifar.cifar100,
        description="60,000 colour 32x32 images, 100 classes in 20 superclasses",
        source="Krizhevsky 2009: the binary version on disk, or the hub",
        reads_path=True,
        default_path="data",
    ),
    "digits": DatasetEntry(
        loader=sources.digits,
        description="1,797 grey 8x8 images of handwritten digits, 10 classes",
        source="scikit-learn's load_digits (UCI optical recognition of handwritten digits, test part)",
    ),
    "femnist": DatasetEntry(
        loader=leaf.femnist,
        description="grey 28x28 images of handwritten characters, 62 classes, with their writers",
        source="LEAF (Caldas et al. 2018): its JSON files on disk, or the hub",
        reads_path=True,
        default_path="data/femnist",
    ),
    "folder": DatasetEntry(
        loader=files.folder,
        description="your image files, one subfolder per class",
        source="a directory on disk",
        reads_path=True,
    ),
    "huggingface": DatasetEntry(
        loader=hub.huggingface,
        description="any image classification data set that the library `datasets` reads",
        source="Parquet or Arrow files on disk, or the Hugging Face hub by name",
        reads_path=True,
    ),
    "idx": DatasetEntry(
        loader=idx.idx,
        description="images in files of MNIST's format, with the official test set",
        source="a directory on disk: MNIST, Fashion-MNIST (Debian: dataset-fashion-mnist), EMNIST, or your own",
        reads_path=True,
    ),
    IN_MEMORY: DatasetEntry(
        loader=memory.in_memory,
        description="what a program hands to spatl.run(config, data=...)",
        source="the memory of the process that runs",
    ),
    "npz": DatasetEntry(
        loader=files.npz,
        description="your NumPy arrays: images and labels, or inputs and targets, and perhaps whose they are",
        source="a file of numpy.savez",
        reads_path=True,
    ),
    "table": DatasetEntry(
        loader=table.table,
        description="your table: a row per example, columns of numbers and categories, a target and perhaps an owner",
        source="CSV or Parquet files on disk, what the library `datasets` saved, or the hub",
        reads_path=True,
    ),
    "synthetic": DatasetEntry(
        loader=synthetic.synthetic,
        description="procedural 32x32 colour images: classes are arrangements of shared textures, of chosen difficulty",
        source="generated from the seed",
        num_bytes=synthetic.bytes_of_synthetic,
    ),
}
