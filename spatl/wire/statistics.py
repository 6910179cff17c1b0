"""BatchNorm statistics on the wire: eight bytes a channel, from each client to the server and, aggregated, back.

A client answers the question for its statistics by a blob of the kind `GATHERED`; what came of all answers is a section
of the downloads that open the evaluation after the last round (docs/wire-format.md).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from spatl.channels.layout import EncoderLayout
from spatl.errors import UpdateRejected
from spatl.wire.blob import (
    GATHERED,
    GATHERED_HEADER,
    STATISTICS,
    check_all_read,
    open_blob,
    pack_blob,
    take_section,
)
from spatl.wire.codec import Codec

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


def pack_statistics(
    statistics: Statistics, layout: EncoderLayout, codec: Codec, *, server_round: int, version: int
) -> bytes:
    """Pack a client's statistics.

    Args:
        statistics: What it estimated.
        layout: The encoder.
        codec: The codec of its updates, by which both sides know each other's config.
        server_round: The round that the question belongs to.
        version: The version of the encoder that they were estimated under.
    """
    header = GATHERED_HEADER.pack(version)
    return pack_blob(GATHERED, codec, server_round, layout, header, {STATISTICS: statistics.to_bytes()})


def unpack_statistics(
    blob: bytes, layout: EncoderLayout, codec: Codec, *, server_round: int, version: int, num_channels: int
) -> Statistics:
    """Check and read a client's statistics; the arguments as of `pack_statistics`.

    Raises:
        UpdateRejected: The reason why the blob must not be used.
    """
    header, own, sections = open_blob(blob, GATHERED, layout, codec)
    (found,) = GATHERED_HEADER.unpack(own)
    if (header.server_round, found) != (server_round, version):
        raise UpdateRejected(
            f"the statistics are of round {header.server_round} and version {found}, "
            f"expected round {server_round} and version {version}"
        )
    statistics = Statistics.from_bytes(take_section(sections, STATISTICS), num_channels)
    check_all_read(sections)
    return statistics
