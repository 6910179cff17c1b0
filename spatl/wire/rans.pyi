"""Lanes of rANS, compiled (`rans.c`): what `spatl.wire.coder` hands them, and takes back."""

import numpy as np
from numpy.typing import NDArray

def encode(
    cells: NDArray[np.uint16], frequencies: NDArray[np.uint32], states: NDArray[np.uint32], words: NDArray[np.uint16]
) -> int: ...
def decode(
    states: NDArray[np.uint32],
    words: NDArray[np.uint16],
    ranks: NDArray[np.uint16],
    frequencies: NDArray[np.uint32],
    symbols: NDArray[np.uint8],
) -> int: ...
