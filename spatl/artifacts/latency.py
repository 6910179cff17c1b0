"""Latency of a network in one thread, measured where it is asked for."""

import time
from statistics import median

import torch
from torch import Tensor, nn

from spatl.models.frozen import modes_kept

_WARM_UP = 3


def measure_latency(network: nn.Module, images: Tensor, *, repeats: int = 20) -> float:
    """Return the median milliseconds of a forward pass in eager PyTorch, one thread, without gradients.

    Args:
        network: The network, which is in eval mode meanwhile.
        images: One batch.
        repeats: How many passes are timed, after three that are not.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with modes_kept(network), torch.no_grad():
            network.eval()
            seconds = []
            for repeat in range(_WARM_UP + repeats):
                started = time.perf_counter()
                network(images)
                if repeat >= _WARM_UP:
                    seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return 1e3 * median(seconds)
