"""A data set: gratings of a few directions in noise, as 8-bit images."""

import numpy as np
from numpy.typing import NDArray


def gratings(
    seed: int, *, num_examples: int = 600, num_directions: int = 4, noise: float = 0.3
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images [N, 12, 12] and the direction of each [N]; the same for the same seed and options."""
    rng = np.random.default_rng(seed)
    directions = rng.integers(num_directions, size=num_examples)
    angle = np.pi * directions / num_directions
    row, column = np.mgrid[:12, :12]
    along = row * np.sin(angle)[:, None, None] + column * np.cos(angle)[:, None, None]
    waves = np.sin(along + rng.uniform(0, 2 * np.pi, (num_examples, 1, 1))) + noise * rng.normal(size=along.shape)
    return np.clip(127 + 64 * waves, 0, 255).astype(np.uint8), directions
