"""Codecs turn the float values of a message into bytes and back; each has a name for configs and a number for the wire.

A codec sees a flat vector of values together with the channel each value belongs to, so that one with a scale per
channel fits the same interface. What the receiver will decode is what the sender computes with: `decode(encode(v))`.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from spatl.errors import UpdateRejected


class Codec(Protocol):
    """How values are written on the wire."""

    name: str
    number: int

    def num_bytes(self, *, num_values: int, num_channels: int) -> int:
        """The encoded length in bytes of `num_values` values that belong to `num_channels` channels."""
        ...

    def encode(self, values: Tensor, channels: Tensor, *, generator: torch.Generator) -> bytes:
        """Encode values.

        Args:
            values: float32 [V], on any device.
            channels: int64 [V], the channel of each value, counted within the message from 0.
            generator: The source of stochastic rounding; a codec that does not round leaves it alone.

        Returns:
            The bytes, `num_bytes` of them.
        """
        ...

    def decode(self, data: memoryview, channels: Tensor) -> Tensor:
        """Decode what `encode` wrote.

        Args:
            data: The received bytes.
            channels: int64 [V], as for `encode`.

        Returns:
            float32 [V] on the CPU.

        Raises:
            UpdateRejected: The length is not the one that V values need.
        """
        ...


class Float32:
    """Little-endian IEEE 754 single precision, exactly."""

    name = "float32"
    number = 0

    def num_bytes(self, *, num_values: int, num_channels: int) -> int:
        """Four bytes a value."""
        return 4 * num_values

    def encode(self, values: Tensor, channels: Tensor, *, generator: torch.Generator) -> bytes:
        """Write the values as they are."""
        return values.detach().cpu().numpy().astype("<f4", copy=False).tobytes()

    def decode(self, data: memoryview, channels: Tensor) -> Tensor:
        """Read the values as they were written."""
        if len(data) != 4 * channels.numel():
            raise UpdateRejected(f"expected {4 * channels.numel()} bytes of float32 values, got {len(data)}")
        return torch.from_numpy(np.frombuffer(data, dtype="<f4").astype(np.float32))


class Float16:
    """Little-endian IEEE 754 half precision, rounded to nearest; what exceeds its range becomes its largest number."""

    name = "float16"
    number = 1

    def num_bytes(self, *, num_values: int, num_channels: int) -> int:
        """Two bytes a value."""
        return 2 * num_values

    def encode(self, values: Tensor, channels: Tensor, *, generator: torch.Generator) -> bytes:
        """Round the values; what is not a number stays none, for the receiver to refuse."""
        limit = torch.finfo(torch.float16).max
        rounded = values.detach().cpu().clamp(-limit, limit).to(torch.float16)
        return rounded.numpy().astype("<f2", copy=False).tobytes()

    def decode(self, data: memoryview, channels: Tensor) -> Tensor:
        """Read the rounded values."""
        if len(data) != 2 * channels.numel():
            raise UpdateRejected(f"expected {2 * channels.numel()} bytes of float16 values, got {len(data)}")
        return torch.from_numpy(np.frombuffer(data, dtype="<f2").astype(np.float32))


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Float32(), Float16())}
CODECS_BY_NUMBER: dict[int, Codec] = {codec.number: codec for codec in CODECS.values()}
