"""A selection is one bit per channel; the entries that travel, their number and their share follow from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from spatl.channels.kept import Kept, kept_of, taken
from spatl.channels.layout import EncoderLayout
from spatl.channels.vectors import parts_of
from spatl.errors import UpdateRejected


@dataclass(frozen=True, eq=False)
class Selection:
    """The channels of an encoder that a client sends (m_i).

    Attributes:
        mask: bool [C], true for the channels that travel; nobody changes it.
        closed: Whether the channels that do not travel are gone for good: what only multiplies one of them stays behind
            as well, and what travels is a smaller dense network.
    """

    mask: Tensor
    closed: bool = False

    def entries(self, layout: EncoderLayout) -> Tensor:
        """int64 [V]: positions in the layout's vector of the entries that travel, ascending.

        Twice as long as the values themselves, or more: what runs over a large encoder takes `parts`.
        """
        found = [torch.zeros(0, dtype=torch.int64)]
        for part, kept in self.parts(layout):
            positions = torch.arange(part.start, part.stop)
            found.append(positions if kept is None else positions[kept])
        return torch.cat(found)

    def parts(self, layout: EncoderLayout, stop: int | None = None) -> Iterator[tuple[slice, Tensor | None]]:
        """Some entries of the layout's vector at a time, and which of them travel, bool; None where all of them do.

        Up to a position in the vector, or to its end.
        """
        read = torch.cat([self.mask, torch.ones(1, dtype=torch.bool)])  # -1 is the appended true
        for part in parts_of(layout.num_entries if stop is None else stop):
            if self._is_everything:
                yield part, None
                continue
            kept = self.mask[layout.owner_in(part)]
            if self.closed:
                kept &= read[layout.reads_in(part)]
            yield part, kept

    def value_parts(self, layout: EncoderLayout, stop: int | None = None) -> Iterator[tuple[slice, Kept | None, slice]]:
        """As `parts`, with what takes and puts the values that travel, and where these lie among all that do.

        A small layout keeps them: what an update goes through asks for them ten times, of selections that its sender
        and its receiver each have for themselves.
        """
        length = layout.num_entries if stop is None else stop
        if self._is_everything:
            return ((part, None, part) for part in parts_of(length))
        if not layout.is_expanded:
            return self._value_parts(layout, length)
        key = (self._bits, self.closed, length)
        return iter(layout.selected.of(key, lambda: tuple(self._value_parts(layout, length))))

    @cached_property
    def _is_everything(self) -> bool:
        return bool(self.mask.all())

    @cached_property
    def _bits(self) -> bytes:
        return self.mask.numpy().tobytes()

    def _value_parts(self, layout: EncoderLayout, length: int) -> Iterator[tuple[slice, Kept | None, slice]]:
        start = 0
        for part, kept in self._kept_parts(layout, length):
            end = start + kept.number
            yield part, None if kept.number == part.stop - part.start else kept, slice(start, end)
            start = end

    def _kept_parts(self, layout: EncoderLayout, length: int) -> Iterator[tuple[slice, Kept]]:
        if self.closed or layout.is_expanded:  # rows of what is read are short, and of a small layout all is kept
            yield from ((part, Kept.of_bits(bits)) for part, bits in self.parts(layout, length) if bits is not None)
            return
        for part in parts_of(length):
            yield part, self.kept_in(part, layout)

    def kept_in(self, part: slice, layout: EncoderLayout) -> Kept:
        """Return which entries of a part of the vector travel, of a selection that is not `closed`."""
        return kept_of(
            (slice(begin - part.start, end - part.start), inner, self.mask[labels])
            for begin, end, inner, labels in layout.runs_in(part)
        )

    def tensor_counts(self, layout: EncoderLayout) -> Tensor:
        """int64 [T]: how many entries of each tensor travel."""
        if not self.closed or self._is_everything:
            return layout.patterns.counts(self.mask)
        starts = torch.tensor(layout.starts)
        counts = torch.zeros(len(layout.shapes), dtype=torch.int64)
        for part, kept, _ in self.value_parts(layout):
            edges = (starts - part.start).clamp(0, part.stop - part.start)
            if kept is not None:
                edges = torch.searchsorted(kept.positions(), edges)
            counts += edges.diff()
        return counts

    def num_entries(self, layout: EncoderLayout, stop: int | None = None) -> int:
        """V, how many entries travel: of the whole vector, or of what lies before a position in it."""
        length = layout.num_entries if stop is None else stop
        if self._is_everything:
            return length
        sizes = {layout.num_entries: layout.channel_sizes, layout.num_parameter_entries: layout.parameter_sizes}
        if not self.closed and length in sizes:
            return int(sizes[length][self.mask].sum())
        return sum(values.stop - values.start for _, _, values in self.value_parts(layout, stop))

    def take(self, vector: Tensor, layout: EncoderLayout) -> Tensor:
        """[V]: the values of a vector ([N]) that travel; the vector itself where all do."""
        if self._is_everything:
            return vector
        found = torch.empty(self.num_entries(layout), dtype=vector.dtype)
        for part, kept, values in self.value_parts(layout):
            found[values] = taken(vector[part], kept)
        return found

    def keep_ratio(self, layout: EncoderLayout) -> float:
        """The share of the encoder's entries that travel, in [0, 1]; 1 for an encoder without entries."""
        if layout.num_entries == 0:
            return 1.0
        return self.num_entries(layout) / layout.num_entries

    def counts(self, layout: EncoderLayout) -> Tensor:
        """int64 [G]: how many channels of each group travel."""
        return torch.bincount(layout.group_of[self.mask], minlength=len(layout.groups))


def select_all(layout: EncoderLayout, *, closed: bool = False) -> Selection:
    """Return the selection of every channel."""
    return Selection(torch.ones(layout.num_channels, dtype=torch.bool), closed)


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
