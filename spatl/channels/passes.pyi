"""Passes over the entries of a vector, compiled (`passes.c`): what `spatl.channels.fused` hands them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64] | None

def add(
    high: NDArray[np.int64],
    low: NDArray[np.int64],
    values: NDArray[Any],
    at: Rows,
    inner: int,
    exact: bool,
    before: float,
    divisor: float,
    after: float,
) -> None: ...
def total(high: NDArray[np.int64], low: NDArray[np.int64], out: NDArray[np.float64]) -> None: ...
def refresh(
    own: NDArray[np.float32],
    common: NDArray[np.float32],
    values: NDArray[np.float32],
    at: Rows,
    inner: int,
    step_weight: float,
    damping: float,
) -> None: ...
def sketch(
    numbers: NDArray[np.float64],
    values: NDArray[np.float32],
    at: Rows,
    inner: int,
    length: int,
    first: int,
    signs: NDArray[np.float32],
    shifts: NDArray[np.int64],
) -> None: ...
