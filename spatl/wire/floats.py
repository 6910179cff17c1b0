"""Codecs that write values as floating-point numbers."""

import math

import numpy as np
import torch
from torch import Tensor

from spatl.channels.layout import Places
from spatl.channels.vectors import parts_of
from spatl.wire.codec import Codec, check_length


class _Float(Codec):
    """IEEE 754 numbers, little-endian, rounded to nearest."""

    name: str
    number: int
    relative = False
    _dtype: np.dtype[np.floating]
    _largest: float

    def num_bytes(self, *, num_values: int, num_channels: int) -> int:
        return self._dtype.itemsize * num_values

    def encode(
        self, values: Tensor, places: Places, *, generator: torch.Generator, max_bytes: int | None = None
    ) -> bytes:
        exact = values.detach().cpu().numpy()
        if math.isinf(self._largest):
            return exact.astype(self._dtype, copy=False).tobytes()
        rounded = np.empty(len(exact), dtype=self._dtype)
        for part in parts_of(len(exact)):
            rounded[part] = exact[part].clip(-self._largest, self._largest)
        return rounded.tobytes()

    def decode(self, data: memoryview, places: Places) -> Tensor:
        check_length(data, self.num_bytes(num_values=len(places), num_channels=0), self.name)
        return torch.from_numpy(np.frombuffer(data, dtype=self._dtype).astype(np.float32))


class Float32(_Float):
    """Little-endian IEEE 754 single precision, exactly."""

    name = "float32"
    number = 0
    _dtype = np.dtype("<f4")
    _largest = math.inf


class Float16(_Float):
    """Little-endian IEEE 754 half precision, rounded to nearest; what exceeds its range becomes its largest number."""

    name = "float16"
    number = 1
    _dtype = np.dtype("<f2")
    _largest = float(np.finfo(np.float16).max)
