"""Latency on one thread, measured where it is asked for."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor, nn

from spatl.models.frozen import modes_kept

Key = TypeVar("Key")

_WARM_UP = 3
_LEAST_TURNS = 9
_MOST_TURNS = 200


def measure_latency(network: nn.Module, images: Tensor, *, repeats: int = 20) -> float:
    """Return the median milliseconds of a forward pass in eager PyTorch, one thread, without gradients.

    Args:
        network: The network, which is in eval mode meanwhile.
        images: One batch.
        repeats: How many passes are timed, after three that are not.
    """
    with modes_kept(network):
        network.eval()
        times = medians_in_turns({"": lambda: network(images)}, seconds=0.0, turns=range(repeats, repeats))
    return 1e3 * times[""]


def medians_in_turns(
    runners: Mapping[Key, Callable[[], object]], *, seconds: float, turns: range = range(_LEAST_TURNS, _MOST_TURNS)
) -> dict[Key, float]:
    """Return the median seconds of calls that are made in turns, PyTorch on one thread and without gradients.

    Args:
        runners: What to call, by name.
        seconds: After which no further turn begins.
        turns: The least and the most turns there may be.
    """
    taken: dict[Key, list[float]] = {key: [] for key in runners}
    with _one_thread(), torch.no_grad():
        for run in runners.values():
            for _ in range(_WARM_UP):
                run()
        began = time.perf_counter()
        for turn in range(turns.stop):
            if turn >= turns.start and time.perf_counter() - began > seconds:
                break
            for key, run in runners.items():
                started = time.perf_counter()
                run()
                taken[key].append(time.perf_counter() - started)
    return {key: median(values) for key, values in taken.items()}


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
