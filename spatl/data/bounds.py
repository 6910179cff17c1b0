"""Bounds of what devices may tell of data of their own, and of what they may agree on: names, sides, tokens.

A name is text that everybody is sent, so that there are as many as a message should have. Tokens have numbers alone
as a rule: then how many there are is all that is told, and what bounds it is the memory of the network, whose first
layer has a row for each. So a vocabulary is as large as `data.num_tokens` says; where nothing says it, one device could
make that network as large as it likes, and `MOST_UNSTATED` bounds it.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, get_args

from spatl.data.labels import MAX_CLASSES
from spatl.data.normalisation import Scale
from spatl.errors import DataError, printable

LARGEST_NUM_CLASSES: Final = 10_000
LONGEST_NAME: Final = 200
LARGEST_SIDE: Final = 32_768
_LARGEST_EXAMPLE: Final = 1 << 28
_LARGEST_MEAN: Final = 1e30  # as of pixels (`spatl.data.images`)
_LARGEST_SQUARES: Final = 1e75
MOST_SIDES: Final = 4
LARGEST_NUM_TOKENS: Final = 1 << 24
MOST_UNSTATED: Final = 1 << 16
"""The most tokens that devices agree on where `data.num_tokens` does not say how many there are."""


@lru_cache(maxsize=8)
def numbers(count: int) -> tuple[str, ...]:
    """Return the names of so many outputs that have none but their numbers, from 0; the same tuple again and again."""
    return tuple(map(str, range(count)))


def as_told(names: Sequence[str]) -> int | list[str]:
    """Return names as they are sent and written: of more than `LARGEST_NUM_CLASSES` numbers from 0, how many there are.

    `numbers` makes names of that again.
    """
    return len(names) if len(names) > LARGEST_NUM_CLASSES and tuple(names) == numbers(len(names)) else list(names)


def names_of(told: object) -> object:
    """Return what `as_told` returned as names again; what it cannot have returned as it is.

    Nothing is made of a number beyond `MAX_CLASSES`.
    """
    return numbers(told) if type(told) is int and LARGEST_NUM_CLASSES < told <= MAX_CLASSES else told


def check_classes(classes: Sequence[object], *, most: int = LARGEST_NUM_CLASSES) -> None:
    """Raise a `DataError` unless these are names of classes, each once.

    Args:
        classes: The names.
        most: How many there may be.

    Raises:
        DataError: They are none, too many or too long.
    """
    if not 1 <= len(classes) <= most:
        raise DataError(f"expected 1 to {most} classes, got {len(classes)}")
    if len(classes) > LARGEST_NUM_CLASSES and classes == numbers(len(classes)):
        return
    for name in classes:
        if not isinstance(name, str) or not 1 <= len(name) <= LONGEST_NAME:
            raise DataError(f"the name of a class must be a text of 1 to {LONGEST_NAME} characters, got {name!r:.50}")
        if printable(name) != name:
            raise DataError(f"the name of a class must have no control characters, got {name!r:.50}")
    if len(set(classes)) < len(classes):
        raise DataError("a class is named twice")


def check_scale(scale: object, num_tokens: object) -> None:
    """Raise a `DataError` unless this is a scale of some numbers, or none of tokens.

    Raises:
        DataError: It is another one, or there are too many tokens.
    """
    if scale not in get_args(Scale):
        raise DataError(f"a scale must be one of {', '.join(get_args(Scale))}, got {scale!r:.50}")
    if type(num_tokens) is not int or not 0 <= num_tokens <= LARGEST_NUM_TOKENS:
        raise DataError(f"there must be at most {LARGEST_NUM_TOKENS} tokens, got {num_tokens!r:.50}")
    if num_tokens and scale != "none":
        raise DataError(f"tokens have no scale, got {scale}")


def check_shape(shape: Sequence[object]) -> None:
    """Raise a `DataError` unless this is a shape that examples have.

    Raises:
        DataError: It is none, or too large.
    """
    sides = [side for side in shape if type(side) is int and 1 <= side <= LARGEST_SIDE]
    if not 1 <= len(shape) <= MOST_SIDES or len(sides) != len(shape) or math.prod(sides) > _LARGEST_EXAMPLE:
        raise DataError(
            f"expected examples of 1 to {MOST_SIDES} sides, as of channels x height x width, got "
            f"{' x '.join(map(str, shape)):.50}"
        )


def check_moments(means: Sequence[object], squares: Sequence[object], number: int, what: str) -> None:
    """Raise a `DataError` unless these are means and sums of squared deviations of so many channels or outputs."""
    for values, low, high in ((means, -_LARGEST_MEAN, _LARGEST_MEAN), (squares, 0.0, _LARGEST_SQUARES)):
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(values) != number or len(numbers) != number:
            raise DataError(f"expected a mean and a square for each of {number} {what}, got {tuple(values)!r:.50}")
        if not all(low <= value <= high for value in numbers):  # NaN is not, either
            raise DataError(f"means and squares of values must lie in [{low:g}, {high:g}]")
