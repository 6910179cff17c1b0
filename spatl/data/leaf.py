"""FEMNIST, handwritten characters with their writers, from LEAF's files or the Hugging Face hub.

LEAF (Caldas et al., 2018, arXiv 1812.01097) writes JSON files, each with `users`, `num_samples` and `user_data`, which
holds for each user `x`, images as 784 grey values in [0, 1], and `y`, labels in [0, 62). The values are 8-bit pixels
divided by 255, and are read as those.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spatl.data.checks import check_integer, check_path_is_read, check_switch, path_option
from spatl.data.dataset import Dataset
from spatl.data.hub import Columns, column_values, from_table, hub_table
from spatl.data.images import Pixels, standardise
from spatl.errors import DataError

_CLASSES = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_SIZE = 28
_DEFAULT_PATH = "data/femnist"
_HUB_NAME = "flwrlabs/femnist"


def femnist(seed: int, *, path: str = _DEFAULT_PATH, max_writers: int | None = None, hub: bool = False) -> Dataset:
    """Return FEMNIST: grey images `[1, 28, 28]` of 62 characters, grouped by their 3,500 writers.

    Args:
        seed: Ignored; the images are fixed.
        path: The directory of LEAF's JSON files, or of its subfolders `train` and `test`, which are pooled.
        max_writers: Keep only the first so many writers, in the order in which they appear; None keeps all.
        hub: Whether to take the images from the Hugging Face hub, over the network, instead of the path.

    Raises:
        DataError: The files are not there, truncated or of another format, or the hub cannot be reached.
    """
    check_switch("femnist", "hub", hub)
    if max_writers is not None:
        check_integer("femnist", "max_writers", max_writers, 1, 1_000_000)
    if hub:
        check_path_is_read("femnist", path, default=_DEFAULT_PATH)
        return _from_hub(max_writers)
    examples = _Examples(max_writers)
    for folder in _folders(path_option("femnist", path, expected="a directory")):
        examples.read(folder)
    if not examples.pixels:
        raise DataError(f"femnist: the JSON files in {path} hold no examples; make or copy them again")
    pixels = np.concatenate(examples.pixels)
    images, normalisation = standardise(pixels)
    return Dataset(
        "femnist",
        torch.from_numpy(images),
        torch.from_numpy(np.concatenate(examples.labels)),
        num_classes=len(_CLASSES),
        groups=torch.from_numpy(np.concatenate(examples.groups)),
        group_names=examples.writers,
        class_names=_CLASSES,
        normalisation=normalisation,
        scale="channel",
    )


def _from_hub(max_writers: int | None) -> Dataset:
    table = hub_table("femnist", _HUB_NAME)
    columns = Columns("image", "character", "writer_id")
    if max_writers is not None and "writer_id" in table.column_names:
        writers = column_values("femnist", table, "writer_id")
        distinct, first = np.unique(writers, return_index=True)
        kept = distinct[np.argsort(first)[:max_writers]]
        table = table.select(np.flatnonzero(np.isin(writers, kept)))
    return from_table("femnist", table, columns, channels="grey", image_size=_SIZE, num_classes=len(_CLASSES))


def _folders(path: Path) -> list[Path]:
    """Return the folders that hold JSON files, or say what to download and where to put it."""
    for candidates in ([path], [path / "train", path / "test"], [path / "all_data"]):
        found = [folder for folder in candidates if any(folder.glob("*.json"))]
        if found:
            return found
    raise DataError(
        f"femnist: no JSON files in {path}, nor in its train and test: make them with LEAF's preprocess.sh for "
        "femnist and copy data/train and data/test there; or name their directory in data.options.path, or set "
        "data.options.hub to true to use the Hugging Face hub"
    )


class _Examples:
    """Examples read so far; a writer's number is the order of its first appearance."""

    def __init__(self, max_writers: int | None) -> None:
        self.pixels: list[Pixels] = []
        self.labels: list[np.ndarray[Any, np.dtype[np.int64]]] = []
        self.groups: list[np.ndarray[Any, np.dtype[np.int64]]] = []
        self._writers: dict[str, int] = {}
        self._max_writers = max_writers

    @property
    def writers(self) -> tuple[str, ...]:
        """Their names, by number."""
        return tuple(self._writers)

    def read(self, folder: Path) -> None:
        """Add the examples of a folder; LEAF puts all of a writer's examples there into one file."""
        seen: set[str] = set()
        for file in sorted(folder.glob("*.json")):
            for user, pixels, labels in _users(file):
                full = self._max_writers is not None and len(self._writers) >= self._max_writers
                if full and user not in self._writers:
                    continue
                writer = self._writers.setdefault(user, len(self._writers))
                seen.add(user)
                self.pixels.append(pixels)
                self.labels.append(labels)
                self.groups.append(np.full(len(labels), writer, dtype=np.int64))
            if self._max_writers is not None and len(seen) >= self._max_writers:
                return


def _users(file: Path) -> Iterator[tuple[str, Pixels, np.ndarray[Any, np.dtype[np.int64]]]]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"femnist: cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"femnist: {file} is not JSON, or truncated ({error}); make or copy it again") from error
    try:
        users = [(str(user), content["user_data"][user]) for user in content["users"]]
        repeated = [user for user, times in Counter(user for user, _ in users).items() if times > 1]
        if repeated:
            raise DataError(f"femnist: {file} lists user {repeated[0]!r} twice; make or copy it again")
        for user, data in users:
            if not data["x"] and not data["y"]:
                continue
            yield user, *_arrays(file, user, data["x"], data["y"])
    except (IndexError, KeyError, TypeError) as error:
        raise DataError(
            f"femnist: {file} must hold users and user_data with x and y of each user, as LEAF writes them; "
            f"{type(error).__name__}: {error}"
        ) from error


def _arrays(file: Path, user: str, x: Any, y: Any) -> tuple[Pixels, np.ndarray[Any, np.dtype[np.int64]]]:
    try:
        values, labels = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    except (ValueError, OverflowError) as error:
        raise _misfit(file, user, "rows of different lengths, or texts") from error
    if labels.ndim != 1 or values.shape != (len(labels), _SIZE * _SIZE):
        raise _misfit(file, user, f"x {list(values.shape)} and y {list(labels.shape)}")
    if not (values.min() >= 0 and values.max() <= 1):
        raise _misfit(file, user, f"values from {values.min():g} to {values.max():g}")
    if not np.isin(labels, np.arange(len(_CLASSES))).all():
        raise _misfit(file, user, f"labels from {labels.min():g} to {labels.max():g}")
    pixels = np.rint(values * 255).astype(np.uint8).reshape(-1, 1, _SIZE, _SIZE)
    return pixels, labels.astype(np.int64)


def _misfit(file: Path, user: str, found: str) -> DataError:
    return DataError(
        f"femnist: {file}, user {user!r}: x must be [n, {_SIZE * _SIZE}] grey values in [0, 1] and y n labels in "
        f"[0, {len(_CLASSES)}), got {found}"
    )
