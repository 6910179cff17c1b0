"""Densities of values that were rounded under a known dither: a few levels say how often each integer comes of each.

A value of x steps becomes floor(x + u), u in [0, 1) the dither. Given u, that is m where x lies in [m - u, m + 1 - u):
what the receiver expects follows from one density of x, which is the same for all dithers. It is described as the
distribution of integers is (`spatl.wire.distributions`), by hazards of the magnitude in eighths of a step, and the
dither counts by the eighth that it lies in: eight contexts for the bytes of one. All of it is whole numbers.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spatl.wire.distributions import ESCAPE, LARGEST_SYMBOL, MASS_BITS, fit_hazards, masses_of
from spatl.wire.lanes import SYMBOL_BITS, TOTAL

DITHER_LEVELS: Final = 8
NUM_CELLS: Final = DITHER_LEVELS * (LARGEST_SYMBOL + 1)
"""Cells of a density: eighths of a step, of the magnitudes up to 128 steps."""

_KNOTS: Final = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
_SEGMENT_OF_CELL: Final = np.searchsorted(_KNOTS, np.arange(NUM_CELLS), side="right") - 1
_BITS_OF_LEVEL: Final = 24
"""What a further level has to save of telling cells, which are finer than what is sent; by measurement."""


def fit_density(counts: NDArray[np.int64]) -> list[int]:
    """The levels of a density.

    Args:
        counts: int64 [NUM_CELLS], how many magnitudes lie in each cell; larger ones in the last.
    """
    return fit_hazards(counts, np.int64(0), _KNOTS, bits_of_level=_BITS_OF_LEVEL)


def frequencies_by_dither(levels: Sequence[int]) -> NDArray[np.int64]:
    """Return how often each symbol is expected in `TOTAL`, by the eighth of the dither, int64 [8, 256].

    A dither somewhere in eighth k has an integer be below m where x is below a bound somewhere in the cell that ends at
    8 m - k eighths; the mean of the density's sums at either end of that cell is what is expected.
    """
    return _frequencies_by_dither(tuple(levels))


@lru_cache(maxsize=256)
def _frequencies_by_dither(levels: tuple[int, ...]) -> NDArray[np.int64]:
    below = np.cumsum([0, *masses_of(levels, _SEGMENT_OF_CELL)], dtype=np.int64)
    integers = np.arange(-LARGEST_SYMBOL, LARGEST_SYMBOL + 2)
    ends = DITHER_LEVELS * integers - np.arange(DITHER_LEVELS)[:, None]

    def doubled(cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """Twice the mass below the end of a cell."""
        inside = cells.clip(-NUM_CELLS, NUM_CELLS)
        mass: NDArray[np.int64] = (1 << MASS_BITS) + np.sign(inside) * below[np.abs(inside)]
        return mass

    cumulated = (doubled(ends) + doubled(ends - 1)) * (TOTAL - 1) >> MASS_BITS + 2
    frequencies = np.zeros((DITHER_LEVELS, 1 << SYMBOL_BITS), dtype=np.int64)
    frequencies[:, integers[:-1] % (1 << SYMBOL_BITS)] = np.diff(cumulated)
    frequencies[:, ESCAPE] = TOTAL - frequencies.sum(axis=1)
    frequencies.flags.writeable = False
    return frequencies
