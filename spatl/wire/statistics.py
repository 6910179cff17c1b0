"""BatchNorm statistics on the wire: eight bytes a channel, from each client to the server and, aggregated, back.

A client answers the question for its statistics by a blob of the kind `GATHERED`; what came of all answers is a section
of the downloads that open the evaluation after the last round (docs/wire-format.md).
"""

import math
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from spatl.channels.layout import EncoderLayout
from spatl.errors import UpdateRejected
from spatl.wire.blob import (
    ARRIVAL,
    GATHERED,
    STATISTICS,
    check_all_read,
    open_gathered,
    pack_blob,
    section_bytes_of,
    take_section,
)
from spatl.wire.codec import Codec
from spatl.wire.measures import Judging

STATISTICS_QUESTION: Final = "query.statistics"
"""Flower's type of the message that asks for them."""
BYTES_PER_CHANNEL: Final = 8
"""A mean and a variance, binary32 each."""
_LARGEST: Final = 1e15  # so that the squares of means, and sums of variances, stay far inside float32


@dataclass(frozen=True, eq=False)
class Statistics:
    """Means and variances of the channels that normalisation layers see.

    Attributes:
        means: float32 [S], of all layers in the model's order.
        variances: float32 [S], likewise; none below 0.
    """

    means: Tensor
    variances: Tensor

    def to_bytes(self) -> bytes:
        """The means and then the variances, as little-endian binary32."""
        return torch.cat([self.means, self.variances]).numpy().astype("<f4", copy=False).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, num_channels: int) -> "Statistics":
        """Read what `to_bytes` wrote.

        Args:
            data: The bytes.
            num_channels: S.

        Raises:
            UpdateRejected: They are of other than so many channels, or a number is out of its range.
        """
        if len(data) != BYTES_PER_CHANNEL * num_channels:
            raise UpdateRejected(
                f"expected {BYTES_PER_CHANNEL * num_channels} bytes of statistics of {num_channels} channels, "
                f"got {len(data)}"
            )
        numbers = torch.from_numpy(np.frombuffer(data, dtype="<f4").astype(np.float32))
        means, variances = numbers[:num_channels], numbers[num_channels:]
        if not bool((means.abs() <= _LARGEST).all()):  # NaN is not, either
            raise UpdateRejected(f"running means must be finite and at most {_LARGEST:g} in size")
        if not bool(((variances >= 0) & (variances <= _LARGEST)).all()):
            raise UpdateRejected(f"running variances must lie in [0, {_LARGEST:g}]")
        return cls(means, variances)


@dataclass(frozen=True, eq=False)
class Arrival:
    """Account of an encoder that arrived, as a client finds it with its own statistics.

    Attributes:
        statistics: BatchNorm statistics of its training split.
        accuracy: On its validation split, in [0, 1], or the score of another task; NaN where it has none, None where
            nobody asks.
    """

    statistics: Statistics
    accuracy: float | None = None

    @property
    def section(self) -> int:
        """The kind of section that it makes."""
        return STATISTICS if self.accuracy is None else ARRIVAL

    def to_bytes(self) -> bytes:
        """The accuracy, binary32, where it is told, and the statistics."""
        accuracy = b"" if self.accuracy is None else _ACCURACY.pack(self.accuracy)
        return accuracy + self.statistics.to_bytes()

    @classmethod
    def take(
        cls, sections: dict[int, memoryview], num_channels: int, *, with_accuracy: bool, judging: Judging | None = None
    ) -> "Arrival":
        """Take what `to_bytes` wrote out of the sections of a blob.

        Args:
            sections: By kind.
            num_channels: S.
            with_accuracy: Whether the accuracy was asked for.
            judging: By what it is judged; None for the accuracy of a classification.

        Raises:
            UpdateRejected: It is not there, or a number is out of its range.
        """
        if not with_accuracy:
            return cls(Statistics.from_bytes(take_section(sections, STATISTICS), num_channels))
        data = take_section(sections, ARRIVAL)
        if len(data) < _ACCURACY.size:
            raise UpdateRejected(f"{len(data)} bytes hold no accuracy")
        (accuracy,) = _ACCURACY.unpack_from(data)
        if judging is not None and not judging.task.counts_hits:
            judging.check_score(accuracy)
        elif not (0 <= accuracy <= 1 or math.isnan(accuracy)):
            raise UpdateRejected(f"an accuracy must lie in [0, 1], got {accuracy}")
        return cls(Statistics.from_bytes(data[_ACCURACY.size :], num_channels), accuracy)


def arrival_bytes(num_channels: int) -> int:
    """Return how long the section of an arrival with its accuracy is, its line in the table included.

    Args:
        num_channels: S.
    """
    return section_bytes_of(_ACCURACY.size + BYTES_PER_CHANNEL * num_channels)


_ACCURACY: Final = struct.Struct("<f")


def pack_statistics(arrival: Arrival, layout: EncoderLayout, codec: Codec, *, server_round: int, version: int) -> bytes:
    """Pack what a client tells of the encoder after the last round.

    Args:
        arrival: What it found.
        layout: The encoder.
        codec: The codec of its updates, by which both sides know each other's config.
        server_round: The round that the question belongs to.
        version: The version of the encoder.
    """
    return pack_blob(GATHERED, codec, server_round, layout, {arrival.section: arrival.to_bytes()}, version)


def unpack_statistics(
    blob: bytes, layout: EncoderLayout, codec: Codec, *, server_round: int, version: int, num_channels: int,
    with_accuracy: bool = False, judging: Judging | None = None,
) -> Arrival:  # fmt: skip
    """Check and read what `pack_statistics` wrote; the arguments as there, and as of `Arrival.take`.

    Raises:
        UpdateRejected: The reason why the blob must not be used.
    """
    sections = open_gathered(
        blob, GATHERED, layout, codec, server_round=server_round, version=version, what="statistics"
    )
    arrival = Arrival.take(sections, num_channels, with_accuracy=with_accuracy, judging=judging)
    check_all_read(sections)
    return arrival
