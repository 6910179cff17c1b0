"""Tables of images that the library `datasets` reads: from the Hugging Face hub, or from files of the user's own.

The hub is asked only where the user has set `hub: true`. Files are opened one by one by name: the library's way to load
a directory follows what a README in it says, and its way to load a format by name counts the download over the network
and takes a path for a pattern.
Neither way opens pickled files.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from spatl.data.checks import (
    check_choice,
    check_integer,
    check_switch,
    check_text,
    is_hidden,
    missing_package,
    one_line,
    path_option,
)
from spatl.data.dataset import Dataset
from spatl.data.images import decode_images, numbered, standardise
from spatl.data.labels import Labels, class_labels
from spatl.errors import DataError
from spatl.pixels.files import CHANNELS

_FORMATS = (".parquet", ".arrow")
_SHARD = re.compile(r"(?P<split>.+?)-\d+-of-\d+(-[0-9a-f]+)?")
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold images, labels and owners.

    Attributes:
        image: Encoded images.
        label: Class labels: numbers, or texts.
        group: Whose each example is, numbers or texts; None when there is no such column.
    """

    image: str
    label: str
    group: str | None = None


def huggingface(
    seed: int,
    *,
    name: str | None = None,
    path: str | None = None,
    hub: bool = False,
    subset: str | None = None,
    revision: str | None = None,
    splits: Sequence[str] | None = None,
    image: str = "image",
    label: str = "label",
    group: str | None = None,
    channels: str = "colour",
    image_size: int | None = None,
) -> Dataset:
    """Return any image classification data set that the library `datasets` reads.

    Args:
        seed: Ignored; the images are fixed.
        name: The data set's name on the hub, e.g. `owner/name`; needs `hub`.
        path: A local directory instead: Parquet or Arrow files, or what the library's `save_to_disk` wrote.
        hub: Whether the network may be used.
        subset: Which of the hub data set's configurations, where it has several.
        revision: Which version of the hub's data set: a branch, a tag or a commit; its newest if not given.
        splits: The splits to pool; all of them if not given. A local file `SPLIT-00000-of-00001` says its split; of
            others it is the name of their folder below the path, or of the file where there is none.
        image: The column of images.
        label: The column of labels: whole numbers or texts, each of which is a class, in sorted order.
        group: The column that says whose an example is, for the partitioner `natural`.
        channels: `colour` or `grey`; images of the other kind are converted.
        image_size: Height and width to which images are resized; needed where they differ in size.

    Raises:
        DataError: An option does not fit, the data are not there, or a column or an image cannot be read.
    """
    check_switch("huggingface", "hub", hub)
    check_choice("huggingface", "channels", channels, tuple(CHANNELS))
    if image_size is not None:
        check_integer("huggingface", "image_size", image_size, 1, 4096)
    texts = {"image": image, "label": label, "group": group, "name": name, "subset": subset, "revision": revision}
    for option, text in texts.items():
        if text is not None:
            check_text("huggingface", option, text)
    if splits is not None and (isinstance(splits, str) or not splits or not all(isinstance(s, str) for s in splits)):
        raise DataError(f"huggingface: splits must be a list of names, e.g. [train, test], got {splits!r}")
    check_source("huggingface", name, path, hub=hub, subset=subset, revision=revision)
    if name is not None:
        table = hub_table("huggingface", name, subset=subset, revision=revision, splits=splits)
    else:
        expected = "a directory of Parquet or Arrow files"
        table = _local_table(path_option("huggingface", path, expected=expected), splits)
    columns = Columns(image, label, group)
    return from_table("huggingface", table, columns, channels=channels, image_size=image_size)


def check_source(
    dataset: str, name: str | None, path: str | None, *, hub: bool, subset: str | None, revision: str | None
) -> None:
    """Raise a `DataError` unless a data set's options name one source: the hub, with leave to use it, or a path."""
    if (name is None) == (path is None):
        raise DataError(
            f"{dataset}: set data.options.path to a local directory, or data.options.name and data.options.hub: true "
            f"for the hub, got path={path!r} and name={name!r}"
        )
    if name is not None:
        if not _HUB_NAME.fullmatch(name):  # a bare name may be one of the library's formats, or a local directory
            raise DataError(f"{dataset}: name must be owner/name, as the hub shows it, got {name!r}")
        if not hub:
            raise DataError(
                f"{dataset}: {name!r} would be downloaded from the Hugging Face hub, and the network is used only "
                "when you say so: set data.options.hub to true, or download its Parquet files and name their "
                "directory in data.options.path instead"
            )
    else:
        of_the_hub = {"hub": hub or None, "subset": subset, "revision": revision}
        unread = [option for option, value in of_the_hub.items() if value is not None]
        if unread:
            raise DataError(
                f"{dataset}: data.options.{unread[0]} goes with data.options.name, a data set of the hub, got "
                f"{unread[0]}={of_the_hub[unread[0]]!r} and path={path!r}: leave one of them out"
            )


def hub_table(
    dataset: str,
    name: str,
    *,
    subset: str | None = None,
    revision: str | None = None,
    splits: Sequence[str] | None = None,
) -> Any:
    """Return a table of the Hugging Face hub, over the network.

    The arguments are those of `hub_splits`, and the splits to pool, in this order; None for all.

    Raises:
        DataError: The library is missing, the hub does not give the table, or a split is unknown.
    """
    found = hub_splits(dataset, name, subset=subset, revision=revision)
    return _pooled(_library(dataset), dataset, found, splits)


def hub_splits(dataset: str, name: str, *, subset: str | None = None, revision: str | None = None) -> dict[str, Any]:
    """Return the tables of a data set of the Hugging Face hub by the name of their split, over the network.

    Args:
        dataset: Our name for it, for messages.
        name: The hub's name for it.
        subset: Which of its configurations.
        revision: Which of its versions; None for the newest.

    Raises:
        DataError: The library is missing, or the hub does not give the data set.
    """
    library = _library(dataset)
    if Path(name).is_dir():
        raise DataError(
            f"{dataset}: {name!r} is also a directory here, {Path(name).absolute()}, which the library would read in "
            "place of the hub's data set: start in another directory, or name this one in data.options.path"
        )
    try:
        return dict(library.load_dataset(name, subset, revision=revision))
    except Exception as error:  # the library's errors, and those of the clients below it, have no base of their own
        raise DataError(f"{dataset}: the Hugging Face hub did not give {name!r}: {_reason(error)}") from error


def from_table(
    dataset: str, table: Any, columns: Columns, *, channels: str, image_size: int | None, num_classes: int | None = None
) -> Dataset:
    """Return the data set a table holds.

    Args:
        dataset: Its name.
        table: A `datasets.Dataset`.
        columns: Which columns to read.
        channels: A key of `CHANNELS`.
        image_size: As in `decode_images`.
        num_classes: How many classes there are known to be; a class is made of each label if not given.

    Raises:
        DataError: A column is missing or holds something else, or an image cannot be read.
    """
    library = _library(dataset)
    for role in ("image", "label", "group"):
        column = getattr(columns, role)
        if column is not None and column not in table.column_names:
            raise DataError(
                f"{dataset}: there is no column {column!r}; the table has {', '.join(table.column_names)}: set "
                f"data.options.{role}"
            )
    labels = _labels(library, dataset, table, columns.label, num_classes)
    groups, owners = None, tuple[str, ...]()
    if columns.group is not None:
        numbers, owners = numbered(column_values(dataset, table, columns.group))
        groups = torch.from_numpy(numbers)
    files = _image_files(library, dataset, table, columns.image)
    pixels = decode_images(dataset, files, channels=channels, image_size=image_size)
    images, normalisation = standardise(pixels)
    return Dataset(
        dataset,
        torch.from_numpy(images),
        torch.from_numpy(labels.numbers),
        num_classes=len(labels.names),
        groups=groups,
        group_names=owners,
        class_names=labels.names,
        notes=labels.notes,
        normalisation=normalisation,
        scale="channel",
    )


def column_values(
    dataset: str, table: Any, column: str, *, kinds: tuple[type, ...] = (int, str)
) -> np.ndarray[Any, np.dtype[Any]]:
    """Return a column of whole numbers or texts, `[N]`, or of what else `kinds` allows.

    Raises:
        DataError: It holds anything else, or nothing in some row.
    """
    rows = table.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    values = np.asarray(rows) if all(isinstance(row, kinds) for row in rows) else None
    if values is None or (values.dtype.kind not in "iuU" and not set(map(type, rows)) <= set(kinds)):
        raise DataError(
            f"{dataset}: column {column!r} must hold one whole number or text in every row, got "
            f"{table.features[column]}{' with empty rows' if None in rows or not rows else ''}"
        )
    return values


def _labels(library: ModuleType, dataset: str, table: Any, column: str, num_classes: int | None) -> Labels:
    """Return the classes of a column: those of its feature where it names them, or one for each distinct value."""
    feature = table.features[column]
    if isinstance(feature, library.ClassLabel):
        labels = class_labels(dataset, column_values(dataset, table, column), num_classes=feature.num_classes)
        return Labels(labels.numbers, tuple(feature.names))
    values = column_values(dataset, table, column, kinds=(bool, int, float, str))
    return class_labels(dataset, values, num_classes=num_classes)


def _image_files(library: ModuleType, dataset: str, table: Any, column: str) -> list[tuple[str, Path | BytesIO]]:
    """Return the encoded images of the table; decoding is left to the one place that decodes all sources."""
    try:
        encoded = table.select_columns([column]).cast_column(column, library.Image(decode=False))
        rows = [row[column] for row in encoded]
    except Exception as error:  # Arrow's errors, the library's own and Python's
        raise DataError(f"{dataset}: column {column!r} does not hold encoded images: {_reason(error)}") from error
    files: list[tuple[str, Path | BytesIO]] = []
    for position, row in enumerate(rows):
        if not row or (row["bytes"] is None and row["path"] is None):
            raise DataError(f"{dataset}: row {position} has no image in column {column!r}")
        files.append((f"row {position}", Path(row["path"]) if row["bytes"] is None else BytesIO(row["bytes"])))
    return files


def _local_table(path: Path, splits: Sequence[str] | None) -> Any:
    library = _library("huggingface")
    if not path.is_dir():
        raise DataError(
            f"huggingface: no directory {path}: put the data set's Parquet files there, or name another directory in "
            "data.options.path"
        )
    if is_saved(path):
        return _pooled(library, "huggingface", saved_splits("huggingface", path), splits)
    with _reading("huggingface", path), _no_progress_bars(library):
        found = _file_splits(library, path)
    return _pooled(library, "huggingface", found, splits)


def is_saved(path: Path) -> bool:
    """Return whether a directory is what `save_to_disk` of the library `datasets` wrote."""
    return any((path / file).is_file() for file in ("state.json", "dataset_dict.json"))


def saved_splits(dataset: str, path: Path) -> dict[str, Any]:
    """Return the tables of a directory of which `is_saved` holds, by the name of their split; `train` of a single one.

    Raises:
        DataError: The library is missing, or cannot read it.
    """
    library = _library(dataset)
    with _reading(dataset, path), _no_progress_bars(library):
        saved = library.load_from_disk(str(path))
        return dict(saved) if isinstance(saved, dict) else {"train": saved}


@contextmanager
def _reading(dataset: str, path: Path) -> Iterator[None]:
    """Tell in one line what Arrow, the library or the file system have against a path."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # Arrow's errors, the library's own and the file system's
        raise DataError(f"{dataset}: cannot read {path}: {_reason(error)}") from error


def _file_splits(library: ModuleType, path: Path) -> dict[str, Any]:
    files = sorted(file for file in path.rglob("*") if file.suffix in _FORMATS and not is_hidden(file, path))
    files = [file for file in files if not file.match("cache-*.arrow")]  # what the library's transformations leave
    if not files:
        raise DataError(
            f"huggingface: no {' or '.join(_FORMATS)} files in {path}; for image files in one folder per class use "
            "data.name=folder"
        )
    tables: dict[str, list[Any]] = {}
    for file in files:
        tables.setdefault(_split_of(file, path), []).append(_read_file(library, file))
    return {split: library.concatenate_datasets(parts) for split, parts in tables.items()}


def _split_of(file: Path, root: Path) -> str:
    shard = _SHARD.fullmatch(file.stem)
    if shard and shard["split"] != "data":  # as `save_to_disk` calls the files of every split
        return shard["split"]
    return file.stem if file.parent == root else file.parent.name


def _read_file(library: ModuleType, file: Path) -> Any:
    if file.suffix == ".arrow":
        return library.Dataset.from_file(str(file))
    from pyarrow import parquet  # comes with the library

    with file.open("rb") as stream:
        content = parquet.ParquetFile(stream).read()
    return library.Dataset(content, fingerprint=str(file))  # which the library would make by hashing all bytes


def _pooled(library: ModuleType, dataset: str, found: dict[str, Any], splits: Sequence[str] | None) -> Any:
    chosen = list(found if splits is None else dict.fromkeys(splits))
    for split in chosen:
        if split not in found:
            raise DataError(f"{dataset}: there is no split {split!r}; the data set has {', '.join(found)}")
    if not chosen:
        raise DataError(f"{dataset}: the data set has no splits; make or download it again")
    try:
        return library.concatenate_datasets([found[split] for split in chosen])
    except Exception as error:  # Arrow's errors and the library's own
        raise DataError(
            f"{dataset}: the splits {', '.join(chosen)} have different columns, which cannot be pooled: choose among "
            "them with data.options.splits"
        ) from error


def _library(dataset: str) -> ModuleType:
    try:
        import datasets  # an optional extra that takes seconds to import
    except ImportError as error:
        raise missing_package(f"data set {dataset!r}", "the library datasets") from error
    module: ModuleType = datasets
    return module


@contextmanager
def _no_progress_bars(library: ModuleType) -> Iterator[None]:
    shown = library.are_progress_bars_disabled() is False
    library.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            library.enable_progress_bars()


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
