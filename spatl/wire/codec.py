"""Codecs turn the float values of a message into bytes and back; each has a name for configs and a number for the wire.

A codec sees a flat vector of values together with the channel and tensor each value belongs to, so that it can treat
alike what belongs together. What the receiver will decode is what the sender computes with: `decode(encode(v))`.
`docs/wire-format.md` has the bytes of each.
"""

from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.channels.layout import Places
from spatl.channels.vectors import parts_of
from spatl.errors import UpdateRejected


class Compact(Protocol):
    """Values [V] in less memory than as float32."""

    @property
    def num_bytes(self) -> int:
        """The memory they take."""

    def of_part(self, part: slice) -> Tensor:
        """Some of the values, float32: at most `spatl.channels.vectors.PART`."""


def expanded(compact: Compact, number: int) -> Tensor:
    """float32 [number]: all of such values."""
    values = torch.empty(number)
    for part in parts_of(number):
        values[part] = compact.of_part(part)
    return values


class Codec(ABC):
    """A way to write values on the wire.

    Attributes:
        name: For configs.
        number: For the wire.
        relative: Whether it is too coarse for weights themselves and is given their changes instead; what it loses of
            one change stays in the difference and goes into the next.
        sums: Whether a sum of changes can be encoded as one (`encode_sum`).
        feeds_back: Whether what it loses of an update goes into the same sender's next one (error feedback), as a
            biased one needs (`spatl.rounds.feedback`).
        coarse: Whether a change of the encoder takes a longer step, where no length is given.
    """

    name: str
    number: int
    relative: bool
    sums: bool = False
    feeds_back: bool = False
    coarse: bool = False

    @abstractmethod
    def num_bytes(self, *, num_values: int, num_channels: int) -> int:
        """The encoded length in bytes of `num_values` values of `num_channels` channels.

        The largest, if it varies; for a codec that keeps to any length it is given, what is worth planning with.

        Args:
            num_values: V.
            num_channels: C, how many channels have values.
        """

    @abstractmethod
    def encode(
        self, values: Tensor, places: Places, *, generator: torch.Generator, max_bytes: int | None = None
    ) -> bytes:
        """Encode values; what is not a finite number makes bytes that the receiver refuses.

        Args:
            values: float32 [V], on any device.
            places: Where the values belong.
            generator: The source of stochastic rounding; a codec that does not round leaves it alone.
            max_bytes: How long the result may be; only a codec that can choose looks at it.

        Returns:
            The bytes, at most `num_bytes` of them.
        """

    @abstractmethod
    def decode(self, data: memoryview, places: Places) -> Tensor:
        """Decode what `encode` wrote.

        Args:
            data: The received bytes.
            places: As for `encode`.

        Returns:
            float32 [V] on the CPU.

        Raises:
            UpdateRejected: The bytes are not V values of these places.
        """

    def compact(self, data: memoryview, places: Places) -> Compact | None:
        """Return what `decode` makes of the same bytes in less memory; None for a codec that cannot."""
        return None

    def encode_with_memory(
        self, values: Tensor, places: Places, *, generator: torch.Generator, memory: Tensor,
        max_bytes: int | None = None,
    ) -> tuple[bytes, Tensor]:  # fmt: skip
        """Encode an update, and return what the next of the same sender's is encoded with: for codecs that feed back.

        Args:
            values: As of `encode`, like the others.
            places: Likewise.
            generator: Likewise.
            memory: float32 [any], what this returned with the sender's last update that was folded in; empty at first.
            max_bytes: As of `encode`.
        """
        return self.encode(values, places, generator=generator, max_bytes=max_bytes), memory

    def encode_change(
        self, difference: Tensor, places: Places, *, generator: torch.Generator, max_bytes: int | None = None
    ) -> bytes:
        """Encode x - x_hat for all clients; arguments as of `encode`. For codecs that are relative."""
        return self.encode(difference, places, generator=generator)

    def coarser(self) -> "Codec":
        """Return the codec with coarser changes, which take fewer bytes: another object, for one that can choose."""
        return self

    def encode_sum(self, offsets: NDArray[np.int64], places: Places) -> bytes | None:
        """Encode a sum of decoded changes, in units of 2^-24, exactly as one; None for a codec that cannot."""
        return None


def check_length(data: memoryview, expected: int, name: str) -> None:
    """Raise unless data have a length.

    Raises:
        UpdateRejected: They have another one.
    """
    if len(data) != expected:
        raise UpdateRejected(f"expected {expected} bytes of {name} values, got {len(data)}")
