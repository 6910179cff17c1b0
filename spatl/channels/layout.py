"""The encoder as one flat vector: which entry belongs to which parameter and to which channel.

Everything that travels or is averaged is arithmetic on this vector: the update, the control variates, a channel mask.
Both sides of a federation derive the same layout from the same config, and its fingerprint proves it.
"""

import bisect
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from spatl.channels.kept import LastKept
from spatl.channels.patterns import Patterns
from spatl.channels.vectors import parts_of

EXPANDED_ENTRIES: Final = 2**19  # a layout of so many entries keeps what belongs to each, and looks it up


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of the encoder that live and die together, in one row of the layout's table.

    Attributes:
        name: The first layer that owns entries of the group.
        first: Index of the group's first channel among all channels.
        size: Number of channels.
        entries_per_channel: Number of entries each channel owns; the same for all channels of the group.
    """

    name: str
    first: int
    size: int
    entries_per_channel: int


@dataclass(frozen=True, eq=False)
class Labels:
    """One number for each entry of a tensor, of which most are alike: that of entry e is `pattern[(e // inner) % L]`.

    So whole tensors are labelled along one of their dimensions, in as little memory as that has indices.

    Attributes:
        pattern: int64 [L].
        inner: How many entries in a row have the same label.
    """

    pattern: Tensor
    inner: int = 1

    @classmethod
    def along(cls, labels: Tensor, shape: torch.Size, dimension: int) -> "Labels":
        """Labels (int64, one per index of a dimension) of a tensor of some shape; one for a tensor of no dimension."""
        return cls(labels.reshape(-1), shape[dimension + 1 :].numel() if shape else 1)

    def of_runs(self, first: int, last: int) -> Tensor:
        """int64 [last - first]: the labels of some runs of `inner` entries."""
        if last <= len(self.pattern):
            return self.pattern[first:last]
        return self.pattern[torch.arange(first, last) % len(self.pattern)]

    def runs_in(self, start: int, stop: int) -> Iterator[tuple[int, int, int, Tensor]]:
        """Some entries in a row by the runs of one label that they are.

        Yields:
            Where runs of one length begin and end, how long each is, and their labels, int64: what is left of a run at
            the beginning, whole runs, and what there is of another at the end.
        """
        inner = self.inner
        edges = min(stop, -(-start // inner) * inner), max(start, stop // inner * inner)
        if edges[0] > edges[1]:  # all within one run
            edges = stop, stop
        for begin, end, length in (
            (start, edges[0], edges[0] - start), (*edges, inner), (edges[1], stop, stop - edges[1])
        ):  # fmt: skip
            if begin < end:
                yield begin, end, length, self.of_runs(begin // inner, begin // inner + (end - begin) // length)


class Places:
    """Places of values in the encoder, for codecs that treat alike what belongs together.

    Args:
        channels: int64 [V], the channel of each value.
        tensors: int64 [V], the tensor of each value, counted in the layout's order.
    """

    def __init__(self, channels: Tensor, tensors: Tensor) -> None:
        self._channels = channels
        self._tensors = tensors

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def channels(self) -> Tensor:
        """int64 [V], the channel of each value."""
        return self._channels

    @cached_property
    def runs(self) -> tuple[Tensor, Tensor]:
        """The values by runs of one tensor: the tensor of each run and its number of values, int64 [R] both."""
        tensors, lengths = torch.unique_consecutive(self._tensors, return_counts=True)
        return tensors, lengths

    @cached_property
    def local_channels(self) -> Tensor:
        """int64 [V], the channels counted among those that have values, from 0."""
        channels = self.channels
        present = torch.zeros(int(channels.max()) + 1 if len(self) else 0, dtype=torch.bool)
        present[channels] = True
        return (present.cumsum(0) - 1)[channels]


class _PlacesOfTensors(Places):
    """Places of which only the number of values of each tensor is known before anyone asks for channels.

    Args:
        lengths: int64 [T], how many values each tensor of the layout has.
        layout: The encoder.
        entries: int64 [V], where the values lie; the first of the layout if not given.
    """

    def __init__(self, lengths: Tensor, layout: "EncoderLayout", entries: "EntriesLike | None" = None) -> None:
        self._lengths = lengths
        self._number = int(lengths.sum())
        self._layout = layout
        self._entries = entries

    def __len__(self) -> int:
        return self._number

    @cached_property
    def runs(self) -> tuple[Tensor, Tensor]:
        tensors = self._lengths.nonzero().squeeze(1)
        return tensors, self._lengths[tensors]

    @cached_property
    def channels(self) -> Tensor:
        found = [torch.zeros(0, dtype=torch.int64)]
        if self._entries is None:
            found += [self._layout.owner_in(part) for part in parts_of(self._number)]
        else:
            for part, kept in self._entries.parts(self._layout):
                owner = self._layout.owner_in(part)
                found.append(owner if kept is None else owner[kept])
        return torch.cat(found)


class EntriesLike(Protocol):
    """Choice of entries of a layout (`spatl.channels.selection.Selection`)."""

    def parts(self, layout: "EncoderLayout") -> Iterator[tuple[slice, Tensor | None]]:
        """Some entries at a time, and which of them are chosen, bool; None for all of them."""
        ...

    def tensor_counts(self, layout: "EncoderLayout") -> Tensor:
        """int64 [T]: how many entries of each tensor are chosen."""
        ...


@dataclass(frozen=True, eq=False)
class EncoderLayout:
    """Layout of the encoder as one flat vector: the place of each tensor, and the channel that owns each entry.

    Trainable parameters come first, in the model's order; averaged statistics (if any) follow, so that the vectors
    that exist for parameters only (control variates) are prefixes.

    Attributes:
        shapes: Shape by name, in the order of the vector; names are the model's own.
        num_parameter_entries: P, the length of the prefix that holds trainable parameters.
        owners: By tensor in the order of `shapes`, the channel that owns each entry.
        groups: The channel groups, in the order of the model's layers.
        readings: Likewise, the channel that each entry is multiplied with, -1 where it is none or unknown; None if
            nobody asked.
    """

    shapes: Mapping[str, torch.Size]
    num_parameter_entries: int
    owners: tuple[Labels, ...]
    groups: tuple[ChannelGroup, ...]
    readings: tuple[Labels, ...] | None = None

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Beginning of each tensor in the flat vector, and, last, the vector's end."""
        ends = [0]
        for shape in self.shapes.values():
            ends.append(ends[-1] + shape.numel())
        return tuple(ends)

    @property
    def num_entries(self) -> int:
        """N, the length of the flat vector."""
        return self.starts[-1]

    @property
    def owner(self) -> Tensor:
        """int64 [N], the channel that owns each entry: as a whole, which is twice as long as the encoder itself."""
        return self.owner_in(slice(0, self.num_entries))

    def owner_in(self, part: slice) -> Tensor:
        """int64: the channel that owns each entry of a part of the vector."""
        return self._owner[part] if self._owner is not None else self._labels(self.owners, part)

    def reads_in(self, part: slice) -> Tensor:
        """int64: the channel that each entry of a part of the vector is multiplied with, -1 where there is none."""
        assert self.readings is not None
        return self._reads[part] if self._reads is not None else self._labels(self.readings, part)

    @property
    def is_expanded(self) -> bool:
        """True for a layout so small that the owner of every entry is held."""
        return self._owner is not None

    @cached_property
    def _owner(self) -> Tensor | None:
        return self._expanded(self.owners)

    @cached_property
    def _reads(self) -> Tensor | None:
        return None if self.readings is None else self._expanded(self.readings)

    def _expanded(self, labels: Sequence[Labels]) -> Tensor | None:
        return self._labels(labels, slice(0, self.num_entries)) if self.num_entries <= EXPANDED_ENTRIES else None

    def spread(self, values: Tensor, part: slice) -> Tensor:
        """[part], to each entry of a part of the vector the value, of [C], of the channel that owns it."""
        return values[self._owner[part]] if self._owner is not None else self._labels(self.owners, part, values)

    def _labels(self, labels: Sequence[Labels], part: slice, values: Tensor | None = None) -> Tensor:
        found = torch.empty(part.stop - part.start, dtype=torch.int64 if values is None else values.dtype)
        for begin, end, length, own in self.runs_in(part, labels):
            stretch = found[begin - part.start : end - part.start].view(-1, length)
            stretch.copy_((own if values is None else values[own])[:, None])
        return found

    def runs_in(self, part: slice, labels: Sequence[Labels] | None = None) -> Iterator[tuple[int, int, int, Tensor]]:
        """A part of the vector by runs of entries that one channel owns, or that have one label by tensor of others.

        Yields:
            Where runs of one length begin and end in the vector, how long each is, and their labels, int64.
        """
        for tensor, own in self.tensors_in(part):
            start, its = self.starts[tensor], (labels or self.owners)[tensor]
            for begin, end, length, found in its.runs_in(own.start - start, own.stop - start):
                yield start + begin, start + end, length, found

    def tensors_in(self, part: slice) -> Iterator[tuple[int, slice]]:
        """The tensors that a part of the vector touches, by their number, and what of the vector lies in both."""
        tensor = bisect.bisect_right(self.starts, part.start) - 1
        while tensor < len(self.shapes) and self.starts[tensor] < part.stop:
            own = slice(max(part.start, self.starts[tensor]), min(part.stop, self.starts[tensor + 1]))
            if own.start < own.stop:
                yield tensor, own
            tensor += 1

    @property
    def num_channels(self) -> int:
        """C, the number of channels over all groups."""
        return sum(group.size for group in self.groups)

    @cached_property
    def channel_sizes(self) -> Tensor:
        """int64 [C], how many entries each channel owns."""
        return self._count(self.num_entries)

    @cached_property
    def parameter_sizes(self) -> Tensor:
        """int64 [C], how many trainable entries each channel owns."""
        return self._count(self.num_parameter_entries)

    def _count(self, length: int) -> Tensor:
        counts = torch.zeros(self.num_channels, dtype=torch.int64)
        for part in parts_of(length):
            counts += torch.bincount(self.owner_in(part), minlength=self.num_channels)
        return counts

    @cached_property
    def patterns(self) -> Patterns:
        """Owners of all tensors as few numbers."""
        return Patterns.of([each.pattern for each in self.owners], torch.tensor(self.starts).diff())

    @cached_property
    def selected(self) -> LastKept:
        """Memory of where the values of the last selections lie, of a layout that is expanded."""
        return LastKept()

    @cached_property
    def group_sizes(self) -> Tensor:
        """int64 [G], how many channels each group has."""
        return torch.tensor([group.size for group in self.groups], dtype=torch.int64)

    @cached_property
    def group_entries(self) -> Tensor:
        """int64 [G], how many entries one channel of each group owns."""
        return torch.tensor([group.entries_per_channel for group in self.groups], dtype=torch.int64)

    @cached_property
    def group_of(self) -> Tensor:
        """int64 [C], the group of each channel."""
        return torch.repeat_interleave(self.group_sizes)

    def places(self, entries: EntriesLike | None = None) -> Places:
        """Return the places of chosen entries, or of all."""
        if entries is None:
            return self._first(self.num_entries)
        return _PlacesOfTensors(entries.tensor_counts(self), self, entries)

    def _first(self, length: int) -> Places:
        """Return the places of the first entries of the vector."""
        ends = torch.tensor(self.starts).clamp(max=length)
        return _PlacesOfTensors(ends[1:] - ends[:-1], self)

    @cached_property
    def variances(self) -> tuple[slice, ...]:
        """Parts that are running variances, which a sum of rounded changes must not take below zero."""
        places = zip(self.shapes, itertools.pairwise(self.starts), strict=True)
        running = (place for name, place in places if name.rpartition(".")[2] == "running_var")
        return tuple(slice(start, stop) for start, stop in running if start >= self.num_parameter_entries)

    @property
    def parameter_places(self) -> Places:
        """Places of the trainable entries."""
        return self._first(self.num_parameter_entries)

    @cached_property
    def fingerprint(self) -> bytes:
        """Eight bytes that differ when names, shapes, order or ownership differ."""
        digest = hashlib.blake2b(digest_size=8)
        for name, shape in self.shapes.items():
            digest.update(f"{name}:{tuple(shape)};".encode())
        digest.update(f"{self.num_parameter_entries};".encode())
        for part in parts_of(self.num_entries):
            digest.update(self.owner_in(part).to(torch.int32).numpy().data)
        return digest.digest()

    def tensors_of(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the tensors of a model that the layout names, by name: its own, not copies."""
        tensors: dict[str, Tensor] = dict(model.named_parameters())
        if self.num_entries > self.num_parameter_entries:
            tensors |= dict(model.named_buffers())
        return {name: tensors[name] for name in self.shapes}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Lay named tensors out as one vector.

        Args:
            tensors: A tensor of the right shape for every name of the layout; other names are ignored.

        Returns:
            float32 [N] on the CPU, a copy.
        """
        if not self.shapes:
            return torch.zeros(0)
        return torch.cat([tensors[name].detach().reshape(-1).to("cpu", torch.float32) for name in self.shapes])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return views of a vector by name: of all names for [N], of the parameters for [P]."""
        shapes = list(self.shapes.items())[: bisect.bisect_left(self.starts, vector.numel())]
        pieces = torch.split(vector, [shape.numel() for _, shape in shapes])
        return {name: piece.view(shape) for (name, shape), piece in zip(shapes, pieces, strict=True)}
