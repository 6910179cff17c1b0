"""Dither that both sides of a message make alike: random whole numbers from a seed, each by its place.

SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 17): its n-th output
is a function of the seed and of n, so that any part of the numbers is made without those before it. Only whole numbers
modulo 2^64 are added, multiplied and shifted: every machine makes the same.
"""

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spatl.channels.vectors import PART

DITHER_BITS: Final = 24
"""Bits of a number: as many as a float32 holds exactly."""
_GOLDEN: Final = 0x9E3779B97F4A7C15
_FIRST: Final = 0xBF58476D1CE4E5B9
_SECOND: Final = 0x94D049BB133111EB
_MASK: Final = 2**64 - 1


class Dither:
    """Dither of one message.

    Args:
        seed: In 0..2^32 - 1. The numbers are those of the generator whose seed is the first output of this one.
    """

    def __init__(self, seed: int) -> None:
        self._start = int(_mixed(np.array([(seed + _GOLDEN) & _MASK], dtype=np.uint64))[0])

    def of_part(self, part: slice) -> NDArray[np.uint32]:
        """Numbers of some places, uint32 below 2^24: an output is two of them, the upper bits of its lower half first.

        Args:
            part: At most `PART` places.
        """
        start, skipped = self.state_before(part)
        length = part.stop - part.start
        halves = (
            _mixed(_multiples()[: (skipped + length + 1) // 2] + np.uint64(start)).astype("<u8", copy=False).view("<u4")
        )
        halves >>= np.uint32(32 - DITHER_BITS)
        return halves[skipped : skipped + length].astype(np.uint32, copy=False)

    def state_before(self, part: slice) -> tuple[int, int]:
        """State before the output that a part begins in, below 2^64, and how many of its numbers come before that."""
        first, skipped = divmod(part.start, 2)
        return (self._start + first * _GOLDEN) & _MASK, skipped


@cache
def _multiples() -> NDArray[np.uint64]:
    """Golden ratio's multiples from the first on, modulo 2^64, uint64 [PART / 2 + 1]."""
    return np.arange(1, PART // 2 + 2, dtype=np.uint64) * np.uint64(_GOLDEN)


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix states to outputs, in place."""
    state ^= state >> np.uint64(30)
    state *= np.uint64(_FIRST)
    state ^= state >> np.uint64(27)
    state *= np.uint64(_SECOND)
    state ^= state >> np.uint64(31)
    return state
