"""Labels as people write them, made the numbers 0 to K-1 with the classes' names.

What a file calls its classes need not count from 0: `1..K`, one stray `999`, words. A class is made of each distinct
label and keeps it as its name, so that no label makes a class that has no example. What is no label is refused.
"""

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from spatl.errors import DataError

MAX_CLASSES: Final = 1_000_000
"""The most classes there may be: labels beyond are taken for ids, and would ask for a model that large."""
_FEWEST_IDS = 100  # with fewer examples, each may well be of a class of its own
_SHOWN = 8  # names in a message, beyond which only their number is told


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels with the classes that they are of.

    Attributes:
        numbers: `[N]`, in [0, K).
        names: The K classes' names.
        notes: What their reader should know: that they were numbered anew, for one. A line each.
    """

    numbers: NDArray[np.int64]
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def class_labels(dataset: str, values: NDArray[Any], *, num_classes: int | None = None) -> Labels:
    """Return the numbers and the names of the classes that labels of any kind stand for.

    Args:
        dataset: The data set's name, for messages.
        values: `[N]` or `[N, 1]`: whole numbers of any type, or texts.
        num_classes: How many classes there are, where the labels are known to be counted from 0.

    Raises:
        DataError: Something is no label, or there is none for some example.
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or len(values) == 0:
        raise _misfit(dataset, f"{values.dtype} {list(values.shape)}{_advice(values)}")
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind == "U":
        if num_classes is not None:
            raise DataError(f"{dataset}: num_classes goes with labels that are numbers, got texts; leave it out")
        return _texts(dataset, values)
    return _numbers(dataset, _whole(dataset, values), num_classes)


def named_labels(dataset: str, values: NDArray[Any], names: Sequence[str]) -> Labels:
    """Return labels as the numbers of classes whose names are given: texts by name, numbers as they count from 0.

    Numbers of which some are beyond are taken in their order where there are as many as names.

    Raises:
        DataError: A label is of none of them, or something is no label.
    """
    labels = class_labels(dataset, values)
    if values.dtype.kind in "US":
        place = {name: number for number, name in enumerate(names)}
        if unknown := [name for name in labels.names if name not in place]:
            raise DataError(f"{dataset}: {listed(unknown)} is none of the class_names: expected {listed(names)}")
        return Labels(np.array([place[name] for name in labels.names])[labels.numbers], tuple(names))
    if int(labels.names[-1]) < len(names):
        return Labels(np.array([int(name) for name in labels.names])[labels.numbers], tuple(names))
    if len(labels.names) == len(names):
        return Labels(labels.numbers, tuple(names), labels.notes)
    raise DataError(
        f"{dataset}: of {len(names)} class_names the labels must lie in [0, {len(names)}), got {labels.names[-1]}: "
        "count them from 0"
    )


def names_given(given: Sequence[object], where: str) -> tuple[str, ...]:
    """Return names of outputs that a user gave; none where there are none.

    Raises:
        DataError: They are no texts.
    """
    if isinstance(given, str) or not all(isinstance(name, str) and name for name in given):
        raise DataError(f"{where}: class_names must be texts, one for each output, got {given!r:.60}")
    return tuple(map(str, given))


def class_order(names: Iterable[str]) -> list[str]:
    """Return names of classes in their order: by number where all are whole numbers, by the alphabet elsewhere."""
    names = list(names)
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def united(orders: Iterable[Sequence[str]]) -> list[str]:
    """Return the names of classes of several, each once, in an order that keeps that of each of these.

    Where they leave it open, or contradict one another, it is that of `class_order`.
    """
    orders = list(orders)
    names = class_order({name for order in orders for name in order})
    place = {name: number for number, name in enumerate(names)}
    after = {name: set[str]() for name in names}
    for order in orders:
        for before, name in pairwise(order):
            after[before].add(name)
    waiting = Counter(name for followers in after.values() for name in followers)
    ready = [place[name] for name in names if not waiting[name]]  # ascending, and so a heap
    found = list[str]()
    while ready:
        found.append(names[heapq.heappop(ready)])
        for name in after[found[-1]]:
            waiting[name] -= 1
            if not waiting[name]:
                heapq.heappush(ready, place[name])
    return found if len(found) == len(names) else names


def listed(names: Collection[str]) -> str:
    """Return names with commas between them; of many, the first and how many more there are."""
    shown = list(names)[:_SHOWN]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _whole(dataset: str, values: NDArray[Any]) -> NDArray[Any]:
    """Return labels of whole numbers, none of them negative or an id."""
    if values.dtype.kind == "b":
        return values.astype(np.int64)
    if values.dtype.kind == "f":
        values = values.astype(np.float64)
        odd = np.flatnonzero(~np.isfinite(values) | (values != np.floor(values)))
        if len(odd):
            raise _misfit(dataset, f"{values[odd[0]]:g} for example {odd[0]}, one of {len(odd)} that have none")
    elif values.dtype.kind not in "iu":
        raise _misfit(dataset, f"{values.dtype} {list(values.shape)}")
    low, high = values.min(), values.max()
    if low < 0:
        raise DataError(
            f"{dataset}: labels must be 0 or more, got {low:.0f} and others below 0, {np.count_nonzero(values < 0)} in "
            "all: leave out examples without a label, and number the classes from 0"
        )
    if high >= MAX_CLASSES:
        raise DataError(
            f"{dataset}: labels must be whole numbers below {MAX_CLASSES}, got {high:.0f}: are these ids? Number the "
            "classes from 0"
        )
    return values.astype(np.int64)


def _numbers(dataset: str, values: NDArray[np.int64], num_classes: int | None) -> Labels:
    if num_classes is not None:
        if (high := int(values.max())) >= num_classes:
            raise DataError(
                f"{dataset}: of {num_classes} classes the labels must lie in [0, {num_classes}), "
                f"got {high}: count them from 0"
            )
        return Labels(values, tuple(map(str, range(num_classes))))
    distinct, numbers = np.unique(values, return_inverse=True)
    _check_no_ids(dataset, len(distinct), len(values))
    names = tuple(str(label) for label in distinct)
    if distinct[-1] == len(distinct) - 1:
        return Labels(values, names)
    note = (
        f"{dataset}: the labels are not the numbers from 0 to {len(names) - 1}: a class is made of each of the "
        f"{len(names)} that there are, {_ends(names)}"
    )
    return Labels(numbers.astype(np.int64), names, (note,))


def _texts(dataset: str, values: NDArray[np.str_]) -> Labels:
    distinct, positions = np.unique(values, return_inverse=True)
    texts = [str(text) for text in distinct]
    if not all(text.strip() for text in texts):
        raise _misfit(dataset, f"an empty text for example {np.flatnonzero(np.char.strip(values) == '')[0]}")
    _check_no_ids(dataset, len(texts), len(values))
    names = class_order(texts)
    place = {name: number for number, name in enumerate(names)}
    places = np.array([place[text] for text in texts], dtype=np.int64)
    return Labels(places[positions], tuple(names))


def _check_no_ids(dataset: str, num_classes: int, num_examples: int) -> None:
    if num_classes == num_examples >= _FEWEST_IDS:
        raise DataError(f"{dataset}: each of the {num_examples} examples has a label of its own: are these ids?")


def _ends(names: tuple[str, ...]) -> str:
    """The first names and the last ones."""
    return ", ".join(names if len(names) <= _SHOWN else (*names[:4], "...", *names[-2:]))


def _advice(values: NDArray[Any]) -> str:
    return "; of one-hot rows take values.argmax(1)" if values.ndim == 2 else ""


def _misfit(dataset: str, found: str) -> DataError:
    return DataError(f"{dataset}: labels must be whole numbers from 0, or texts, one per example, got {found}")
