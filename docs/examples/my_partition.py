"""A partitioner: two shards of the examples in the order of their labels (McMahan et al. 2017, section 3)."""

import numpy as np
import torch
from torch import Tensor


def shards(labels: Tensor, num_clients: int, seed: int) -> list[Tensor]:
    """Return the indices of each client's two shards, so that most clients see two classes."""
    pieces = labels.argsort(stable=True).tensor_split(2 * num_clients)
    order = np.random.default_rng(seed).permutation(2 * num_clients)
    return [torch.cat([pieces[first], pieces[second]]) for first, second in order.reshape(-1, 2)]
