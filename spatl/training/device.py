"""Device and arithmetic of a run: where it computes, and what makes two runs equal to the bit."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

from spatl.errors import ConfigError, ModelError

_NARROWEST: Final = 16  # inputs of a layer that is looked at: a bound with room to spare


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


def channels_last(tensor: Tensor) -> Tensor:
    """Return a tensor of four dimensions with the second of them innermost in memory, and any other as it is."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def check_memory_format(model: nn.Module, memory_format: str, device: str, *, here: bool) -> None:
    """Raise where clients would refuse to train a network with the channels innermost in memory.

    Args:
        model: The network.
        memory_format: As of `training.memory_format`.
        device: As of `training.device`.
        here: Whether the clients are of this process; of another's devices only those are known that have a name.

    Raises:
        ModelError: As `check_channels_last`.
        ConfigError: The device is not there.
    """
    if memory_format == "channels-last" and (here or device != "auto"):
        check_channels_last(model, choose_device(device) if here else torch.device(device))


def check_channels_last(model: nn.Module, device: torch.device) -> None:
    """Raise where a network is not trained on a CPU with the channels innermost in memory.

    PyTorch 2.13's kernels for that layout are not to be trusted with narrow strided 1x1 convolutions.

    Raises:
        ModelError: The network has such a layer; the first is named.
    """
    if device.type != "cpu":
        return
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Conv2d) or layer.kernel_size != (1, 1) or layer.stride == (1, 1):
            continue
        if (narrow := layer.in_channels // layer.groups) < _NARROWEST:
            raise ModelError(
                f"training.memory_format: channels-last is not for layer {name!r}, a 1x1 convolution with a stride "
                f"that reads {narrow} channels: on a CPU PyTorch needs {_NARROWEST} of them; use contiguous"
            )
