"""Latency of networks in the runtimes that a device may have, measured side by side on one thread.

What runs beside a measurement slows it down, and for seconds at a time. So all are measured in turns, and ratios are of
medians of the same turns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from spatl.artifacts.graphs import check_packages, exported_program, onnx_of, onnx_session, run_session
from spatl.artifacts.latency import measure_latency, medians_in_turns
from spatl.errors import ConfigError

EAGER: Final = "PyTorch, eager"
FLOAT32: Final = "ONNX Runtime, float32"
INT8: Final = "ONNX Runtime, int8"
BATCHES: Final = (1, 16)
"""Batch sizes that a model card tells of."""
_METER_SECONDS: Final = 0.5  # for each of the networks that a budget is met by


@dataclass(frozen=True)
class Latency:
    """Latency of a network in a runtime.

    Attributes:
        network: Which one: dense, or cut.
        runtime: One of `EAGER`, `FLOAT32` and `INT8`.
        batch: Images at once.
        milliseconds: Median over the turns.
    """

    network: str
    runtime: str
    batch: int
    milliseconds: float


@dataclass(frozen=True, eq=False)
class Forms:
    """Forms of a network that can be run.

    Attributes:
        network: In PyTorch, in eval mode.
        float32: As an ONNX file's content.
        int8: Likewise, in 8 bits; None where it was not asked for.
    """

    network: nn.Module
    float32: bytes
    int8: bytes | None = None


@dataclass(frozen=True)
class LatencyMeter:
    """Meter of latencies.

    Attributes:
        runtime: Where networks are run, one of `EAGER` and `FLOAT32`.
        measure: Called with a network in PyTorch and a batch of images, float32 [B, C, H, W]; returns milliseconds.
    """

    runtime: str
    measure: Callable[[nn.Module, Tensor], float]


def latency_meter(tell: Callable[[str], None]) -> LatencyMeter:
    """Return the meter for what an export is run in: ONNX Runtime where it is installed, else eager PyTorch.

    Args:
        tell: Told which of the two it is, and why where it is the latter.
    """
    try:
        check_packages()
    except ConfigError as error:
        tell(f"latencies are those of {EAGER}, not of ONNX Runtime: {error}")
        return LatencyMeter(EAGER, measure_latency)
    tell(f"latencies are those of {FLOAT32}")
    return LatencyMeter(FLOAT32, measure_onnx_latency)


def measure_onnx_latency(network: nn.Module, images: Tensor, *, seconds: float = _METER_SECONDS) -> float:
    """Return the median milliseconds of a network's ONNX model in float32, measured as a card's are.

    That is in turns with the network in eager PyTorch: called by itself again and again, it has the processor's caches
    to itself, and is up to twice as fast as anybody finds it afterwards.

    Args:
        network: In eval mode, on the CPU; its forward hooks are part of the model.
        images: A batch, of which the shape matters, float32 [B, C, H, W].
        seconds: As of `measure_forms`.

    Raises:
        ModelError: The network has something that ONNX has not.
    """
    batch, channels, height, width = images.shape
    shape = (channels, height, width)
    forms = {"": Forms(network, onnx_of(exported_program(network, shape), network, shape))}
    found = measure_forms(forms, shape, batches=(batch,), seconds=seconds)
    return next(each.milliseconds for each in found if each.runtime == FLOAT32)


def measure_forms(
    forms: Mapping[str, Forms], input_shape: tuple[int, int, int], *, batches: tuple[int, ...] = BATCHES,
    seconds: float = 2.0,
) -> list[Latency]:  # fmt: skip
    """Return the latency of every network in each of its forms, on one thread.

    Args:
        forms: By what the network is called.
        input_shape: C, H and W.
        batches: Batch sizes.
        seconds: How long to measure for each batch size; never less than a few turns.
    """
    runners: dict[tuple[str, str], Callable[[Tensor], object]] = {}
    for name, form in forms.items():
        runners[name, EAGER] = form.network
        runners[name, FLOAT32] = _session_runner(form.float32)
        if form.int8 is not None:
            runners[name, INT8] = _session_runner(form.int8)
    found = []
    for batch in batches:
        images = torch.from_numpy(np.random.default_rng(0).standard_normal((batch, *input_shape)).astype(np.float32))
        times = medians_in_turns({key: partial(run, images) for key, run in runners.items()}, seconds=seconds)
        found += [Latency(name, runtime, batch, 1e3 * times[name, runtime]) for name, runtime in runners]
    return found


def _session_runner(model: bytes) -> Callable[[Tensor], object]:
    session = onnx_session(model)
    return lambda images: run_session(session, images.numpy())
