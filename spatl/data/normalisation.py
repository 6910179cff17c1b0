"""Normalisation of inputs, as a network was trained with it and whoever uses it must repeat it; NumPy alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Scale = Literal["none", "channel", "feature"]
"""Over what values are brought to mean 0 and variance 1."""


@dataclass(frozen=True)
class Normalisation:
    """Mean and deviation of each channel or feature, in the units of the values as they were read.

    An 8-bit image counts from 0 to 255; other arrays are taken as they are.

    Attributes:
        means: What is taken from the values of each channel, or of each feature.
        deviations: What they are then divided by; none is 0.
        scale: Which of the two: a `channel` is `[:, c]` of `[N, C, ...]`, a `feature` each place of an example.
    """

    means: tuple[float, ...]
    deviations: tuple[float, ...]
    scale: Scale = "channel"

    def apply(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Return values `[N, ...]` as a network takes them: in float64, and then rounded to float32."""
        inputs = np.empty(values.shape, dtype=np.float32)
        shape = (len(values), -1) if self.scale == "feature" else values.shape
        read, written = values.reshape(shape), inputs.reshape(shape)  # the latter is a view of what was just made
        for entry, (mean, deviation) in enumerate(zip(self.means, self.deviations, strict=True)):
            written[:, entry] = (read[:, entry].astype(np.float64) - mean) / deviation
        return inputs


def num_scaled(shape: Sequence[int], scale: Scale) -> int:
    """Return how many means a scale has, for examples of a shape."""
    return {"none": 0, "channel": shape[0], "feature": math.prod(shape)}[scale]
