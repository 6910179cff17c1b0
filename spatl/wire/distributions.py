"""Distributions of symbols by a few levels each, fitted to counts, as an encoded stream carries them."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spatl.errors import UpdateRejected
from spatl.wire.lanes import TOTAL

LARGEST_SYMBOL: Final = 127

ESCAPE: Final = 128

_KNOTS: Final = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96)

_SEGMENT_OF_MAGNITUDE: Final = np.searchsorted(_KNOTS, np.arange(LARGEST_SYMBOL + 1), side="right") - 1

LAST_LEVEL: Final = 0x80

_LEVELS: Final = np.arange(LAST_LEVEL)

_LEVELS_PER_OCTAVE: Final = 6

_ODDS: Final = (_LEVELS_PER_OCTAVE + _LEVELS % _LEVELS_PER_OCTAVE) << (_LEVELS // _LEVELS_PER_OCTAVE)

_EVEN_ODDS: Final = _LEVELS_PER_OCTAVE << 8

MASS_BITS: Final = 32

_BITS_IF_HIT: Final = np.log2(1 + _EVEN_ODDS / _ODDS)

_BITS_IF_MISSED: Final = np.log2(1 + _ODDS / _EVEN_ODDS)


# The distribution of a context.


def read_levels(data: memoryview, num_contexts: int) -> tuple[list[list[int]], int]:
    """Read a context's levels up to the marked one, for each context, and return them and where they end."""
    levels: list[list[int]] = []
    position = 0
    for _ in range(num_contexts):
        row: list[int] = []
        while not row or row[-1] < LAST_LEVEL:
            if position == len(data) or len(row) == len(_KNOTS):
                raise UpdateRejected("the hazards of coded integers have no end")
            row.append(data[position])
            position += 1
        row[-1] -= LAST_LEVEL
        levels.append(row)
    return levels, position


def frequencies_of(levels: Sequence[int]) -> NDArray[np.int64]:
    """Return how often each symbol is expected in `TOTAL`, int64 [256]; from integers only: both sides must agree.

    The mass that is left at magnitude m loses its share h_m to that magnitude, half to either sign. Rounding the
    cumulated mass, not each part of it, leaves a rare symbol without a frequency only now and then.
    """
    return _frequencies_of(tuple(levels))


@lru_cache(maxsize=256)  # in one process, whoever sent a message reads it too, and so does the server
def _frequencies_of(levels: tuple[int, ...]) -> NDArray[np.int64]:
    masses = masses_of(levels, _SEGMENT_OF_MAGNITUDE)
    cumulated = np.cumsum([0, *masses[1:]], dtype=np.int64) * (TOTAL - 1)
    either_sign = np.diff(cumulated >> (MASS_BITS + 1))
    zero = [masses[0] * (TOTAL - 1) >> MASS_BITS]
    escape = [TOTAL - zero[0] - 2 * int(either_sign.sum())]
    frequencies = np.concatenate([zero, either_sign, escape, either_sign[::-1]])
    frequencies.flags.writeable = False
    return frequencies


def masses_of(levels: Sequence[int], segments: NDArray[np.intp]) -> list[int]:
    """Return what of 2^32 falls to each magnitude: its hazard's share of what the magnitudes before it left.

    Args:
        levels: The hazards' levels; the last one holds for all segments that follow.
        segments: The segment of each magnitude.
    """
    odds = _ODDS[np.array(levels)[np.minimum(segments, len(levels) - 1)]]
    left = 1 << MASS_BITS
    masses = []
    for share in odds.tolist():
        mass = left * share // (share + _EVEN_ODDS)
        masses.append(mass)
        left -= mass
    return masses


def fit_levels(counts: NDArray[np.int64]) -> list[int]:
    """The levels that take the fewest bits, those that describe them included.

    Args:
        counts: int64 [256], how often each symbol occurs.
    """
    magnitudes = counts[: LARGEST_SYMBOL + 1].copy()
    magnitudes[1:] += counts[:ESCAPE:-1]
    return fit_hazards(magnitudes, counts[ESCAPE], _KNOTS, bits_of_level=8)


def fit_hazards(
    magnitudes: NDArray[np.int64], beyond: np.int64, knots: Sequence[int], *, bits_of_level: int
) -> list[int]:
    """The levels of hazards that take the fewest bits.

    Args:
        magnitudes: int64 [M], how often each magnitude occurs.
        beyond: How often a larger one does.
        knots: The first magnitude of each segment.
        bits_of_level: What a further level has to save.
    """
    reached = magnitudes[::-1].cumsum()[::-1] + beyond
    hits = np.add.reduceat(magnitudes, knots)
    misses = np.add.reduceat(reached, knots) - hits
    # Of each segment by itself, and of all from it on: one row each, so that all levels are tried at once.
    rows = np.array([hits, misses]), np.array([each[::-1].cumsum()[::-1] for each in (hits, misses)])
    (alone, bits_alone), (together, bits_together) = (_fit_level(*row) for row in rows)
    best: list[int] = []
    best_bits, bits = np.inf, 0.0
    for segment in range(len(knots)):
        of_rest = bits + bits_together[segment] + bits_of_level * (segment + 1)
        if of_rest < best_bits:
            best, best_bits = [*alone[:segment], together[segment]], of_rest
        bits += bits_alone[segment]
    return best


def _fit_level(hits: NDArray[np.int64], misses: NDArray[np.int64]) -> tuple[list[int], list[float]]:
    """The level of each hazard that held `hits` times and did not `misses` times, and the bits of telling which."""
    bits = hits[:, None] * _BITS_IF_HIT + misses[:, None] * _BITS_IF_MISSED
    levels = bits.argmin(axis=1)
    return levels.tolist(), bits[np.arange(len(levels)), levels].tolist()
