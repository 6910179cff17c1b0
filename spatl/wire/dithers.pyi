"""Rounding under dither and back, compiled (`dithers.c`): what `spatl.wire.dithered` hands it."""

import numpy as np
from numpy.typing import NDArray

def label(labels: NDArray[np.uint8], state: int, skipped: int) -> None: ...
def undither(
    out: NDArray[np.float32],
    symbols: NDArray[np.uint8],
    escapes: NDArray[np.int32],
    shares: NDArray[np.float32],
    ends: NDArray[np.int64],
    state: int,
    skipped: int,
    step: float,
) -> None: ...
def dither(
    out: NDArray[np.int32],
    labels: NDArray[np.uint8],
    counts: NDArray[np.int64],
    exact: NDArray[np.float32],
    state: int,
    skipped: int,
    step: float,
    stride: int,
) -> None: ...
