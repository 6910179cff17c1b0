"""A selection is one bit per channel; the entries that travel, their number and their share follow from it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spatl.channels.layout import EncoderLayout
from spatl.errors import UpdateRejected


@dataclass(frozen=True, eq=False)
class Selection:
    """The channels of an encoder that a client sends (m_i).

    Attributes:
        mask: bool [C], true for the channels that travel.
        closed: Whether the channels that do not travel are gone for good: what only multiplies one of them stays behind
            as well, and what travels is a smaller dense network.
    """

    mask: Tensor
    closed: bool = False

    def entries(self, layout: EncoderLayout) -> Tensor:
        """int64 [V]: positions in the layout's vector of the entries that travel, ascending."""
        if bool(self.mask.all()):
            return torch.arange(layout.num_entries)
        travels = self.mask[layout.owner]
        if self.closed:
            assert layout.reads is not None
            travels &= torch.cat([self.mask, torch.ones(1, dtype=torch.bool)])[layout.reads]  # -1 is the appended true
        return travels.nonzero().squeeze(1)

    def keep_ratio(self, layout: EncoderLayout) -> float:
        """The share of the encoder's entries that travel, in [0, 1]; 1 for an encoder without entries."""
        if layout.num_entries == 0:
            return 1.0
        if self.closed:
            return len(self.entries(layout)) / layout.num_entries
        return float(layout.channel_sizes[self.mask].sum()) / layout.num_entries

    def counts(self, layout: EncoderLayout) -> Tensor:
        """int64 [G]: how many channels of each group travel."""
        return torch.stack([self.mask[g.first : g.first + g.size].sum() for g in layout.groups])


def select_all(layout: EncoderLayout) -> Selection:
    """Return the selection of every channel."""
    return Selection(torch.ones(layout.num_channels, dtype=torch.bool))


def pack_bitmap(selection: Selection) -> bytes:
    """Write a selection as one bit per channel, least significant bit first; nothing at all when every bit is set."""
    if bool(selection.mask.all()):
        return b""
    return np.packbits(selection.mask.numpy(), bitorder="little").tobytes()


def unpack_bitmap(data: bytes | memoryview, num_channels: int, *, closed: bool = False) -> Selection:
    """Read what `pack_bitmap` wrote of a selection that is `closed` or not.

    Raises:
        UpdateRejected: The length is not that of `num_channels` bits, or a bit beyond the last channel is set.
    """
    if len(data) == 0:
        return Selection(torch.ones(num_channels, dtype=torch.bool), closed)
    num_bytes = (num_channels + 7) // 8
    if len(data) != num_bytes:
        raise UpdateRejected(f"expected a bitmap of {num_bytes} bytes for {num_channels} channels, got {len(data)}")
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")
    if bits[num_channels:].any():
        raise UpdateRejected(f"the bitmap selects a channel beyond the last of {num_channels}")
    return Selection(torch.from_numpy(bits[:num_channels].astype(bool)), closed)
