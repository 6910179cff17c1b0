"""Values that are whole multiples of one step, as those of an update mostly are, in a quarter of their memory.

What the codec `adaptive` decodes are whole numbers times a step. Whoever keeps such values for a while keeps the
numbers, one byte each but for few, and makes the same values of them again, to the bit. Those of `dithered` are no such
multiples; the codec keeps them in as little.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.channels.vectors import parts_of
from spatl.wire.codec import Compact
from spatl.wire.entropy import LARGEST_INTEGER, Symbols

FEWEST: Final = 2**19  # values that are worth it
MOST_ESCAPES: Final = 0.05


@dataclass(frozen=True, eq=False)
class Multiples:
    """Values [V], as whole numbers of a step where that is exact, and else as they are.

    Attributes:
        values: The values, or None where there are numbers.
        step: What the numbers count; None where there are values.
        numbers: The numbers, or None where there are values.
        compact: What a codec makes the same values of, in place of both.
    """

    values: Tensor | None
    step: np.float32 | None = None
    numbers: Symbols | None = None
    compact: Compact | None = None

    @classmethod
    def of(cls, values: Tensor, compact: Callable[[], Compact | None] = lambda: None) -> Self:
        """Keep values (float32 [V]; of another type as they are).

        Args:
            values: The values.
            compact: Returns what a codec may make the same values of; whether it does, is looked at.
        """
        if values.dtype != torch.float32 or len(values) < FEWEST:
            return cls(values)
        own = compact()
        if own is not None and all(_same_bits(own.of_part(part), values[part]) for part in parts_of(len(values))):
            return cls(None, compact=own)
        exact = values.numpy()
        magnitudes = (np.abs(exact[part]) for part in parts_of(len(exact)))
        step = min(np.min(each, where=each > 0, initial=np.float32(np.inf)) for each in magnitudes)
        step = step if np.isfinite(step) else np.float32(1)  # all are zeros, or no numbers
        try:
            numbers = Symbols.of((_whole(exact[part], step) for part in parts_of(len(exact))), len(exact))
        except ValueError:
            return cls(values)
        if len(numbers.escapes) > MOST_ESCAPES * len(exact):
            return cls(values)
        return cls(None, step, numbers)

    @property
    def num_bytes(self) -> int:
        """The memory they take."""
        if self.compact is not None:
            return self.compact.num_bytes
        if self.numbers is None:
            assert self.values is not None
            return self.values.nbytes
        return self.numbers.symbols.nbytes + self.numbers.escapes.nbytes

    def of_part(self, part: slice) -> Tensor:
        """Some of the values."""
        if self.compact is not None:
            return self.compact.of_part(part)
        if self.numbers is None or self.step is None:
            assert self.values is not None
            return self.values[part]
        return torch.from_numpy(self.numbers.of_part(part).astype(np.float32) * self.step)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


def _whole(exact: NDArray[np.float32], step: np.float32) -> NDArray[np.int32]:
    """The whole numbers that values are of a step.

    Raises:
        ValueError: A value is none such, to the bit.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        quotients = np.rint(exact / step)
    if not (np.abs(quotients) <= LARGEST_INTEGER).all():
        raise ValueError("a value is too large")
    numbers: NDArray[np.int32] = quotients.astype(np.int32)
    again = numbers.astype(np.float32) * step
    if not np.array_equal(again.view(np.int32), exact.view(np.int32)):
        raise ValueError("a value is no whole multiple")
    return numbers
