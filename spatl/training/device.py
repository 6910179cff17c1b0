"""Device and arithmetic of a run: where it computes, and what makes two runs equal to the bit."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from spatl.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """Return the device a config names; `auto` takes CUDA, then Apple's, then the CPU.

    Raises:
        ConfigError: The device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    available = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if (device.index or 0) >= available[device.type]:
        raise ConfigError(
            f"training.device is {name}, but this machine has {available[device.type]} {device.type} device(s); "
            "use auto or cpu"
        )
    return device


@contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """Fix what makes floating-point results differ between runs: the number of threads, and cuDNN's choices."""
    before = torch.get_num_threads(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[1:]
