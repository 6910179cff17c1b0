"""Timing of the codecs, beside the least that a quantiser could do: copy, divide, round at random, cast.

Seconds mean little on a busy or another machine, so that least work is timed next to every codec, and the ratio counts.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from spatl.channels.layout import Places
from spatl.wire.codecs import CODECS

NUM_VALUES = 10_000_000
_NUM_TENSORS = 20
NUM_CHANNELS = 4096
_REPEATS = 5
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class CodecTimes:
    """Times of one codec, each the median of a few repeats.

    Attributes:
        name: The codec's name.
        bits_per_value: The length of what it wrote.
        encode_seconds: For all values.
        decode_seconds: For all values.
        ratio: Both together, as a multiple of the least work in the same repeat.
    """

    name: str
    bits_per_value: float
    encode_seconds: float
    decode_seconds: float
    ratio: float


def measure_codecs(*, num_values: int = NUM_VALUES, num_channels: int = NUM_CHANNELS) -> Iterator[CodecTimes]:
    """Time every codec on normal values, as many in each channel, channel by channel as in a message, in one thread."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(num_values, generator=generator)
    channels = torch.arange(num_values) * num_channels // num_values
    places = Places(channels, channels * _NUM_TENSORS // num_channels)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, codec in CODECS.items():
            rows = []
            for _ in range(_REPEATS):
                least, _ = _timed(partial(_least_work, values.numpy()))
                encode, data = _timed(partial(codec.encode, values, places, generator=generator))
                decode, _ = _timed(partial(codec.decode, memoryview(data), places))
                rows.append((8 * len(data) / num_values, encode, decode, (encode + decode) / least))
            yield CodecTimes(name, *np.median(rows, axis=0).tolist())
    finally:
        torch.set_num_threads(threads)


def _timed(work: Callable[[], _Result]) -> tuple[float, _Result]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _least_work(values: NDArray[np.float32]) -> NDArray[np.int8]:
    steps = values.copy()
    steps /= np.float32(0.5)
    steps += np.random.default_rng(0).random(len(steps), dtype=np.float32)
    np.floor(steps, out=steps)
    np.clip(steps, -7, 7, out=steps)
    return steps.astype(np.int8)
