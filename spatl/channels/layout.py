"""The encoder as one flat vector: which entry belongs to which parameter and to which channel.

Everything that travels or is averaged is arithmetic on this vector: the update, the control variates, a channel mask.
Both sides of a federation derive the same layout from the same config, and its fingerprint proves it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


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
class Places:
    """Where values of the encoder belong, for codecs that treat alike what belongs together.

    Attributes:
        channels: int64 [V], the channel of each value.
        tensors: int64 [V], the tensor of each value, counted in the layout's order.
    """

    channels: Tensor
    tensors: Tensor

    def __len__(self) -> int:
        return len(self.channels)

    @cached_property
    def local_channels(self) -> Tensor:
        """int64 [V], the channels counted among those that have values, from 0."""
        present = torch.zeros(int(self.channels.max()) + 1 if len(self) else 0, dtype=torch.bool)
        present[self.channels] = True
        return (present.cumsum(0) - 1)[self.channels]


@dataclass(frozen=True, eq=False)
class EncoderLayout:
    """Where each tensor of the encoder lies in the flat vector, and which channel owns each entry.

    Trainable parameters come first, in the model's order; averaged statistics (if any) follow, so that the vectors
    that exist for parameters only (control variates) are prefixes.

    Attributes:
        shapes: Shape by name, in the order of the vector; names are the model's own.
        num_parameter_entries: P, the length of the prefix that holds trainable parameters.
        owner: int64 [N], the channel that owns each entry.
        groups: The channel groups, in the order of the model's layers.
        reads: int64 [N], the channel that each entry is multiplied with, -1 where it is none or unknown; None if nobody
            asked.
    """

    shapes: Mapping[str, torch.Size]
    num_parameter_entries: int
    owner: Tensor
    groups: tuple[ChannelGroup, ...]
    reads: Tensor | None = None

    @property
    def num_entries(self) -> int:
        """N, the length of the flat vector."""
        return self.owner.numel()

    @property
    def num_channels(self) -> int:
        """C, the number of channels over all groups."""
        return sum(group.size for group in self.groups)

    @cached_property
    def channel_sizes(self) -> Tensor:
        """int64 [C], how many entries each channel owns."""
        return torch.bincount(self.owner, minlength=self.num_channels)

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

    @cached_property
    def tensor_of(self) -> Tensor:
        """int64 [N], the tensor of each entry, counted in the order of `shapes`."""
        sizes = torch.tensor([shape.numel() for shape in self.shapes.values()], dtype=torch.int64)
        return torch.repeat_interleave(sizes)

    def places(self, entries: Tensor | None = None) -> Places:
        """Where some entries (int64 [V]) belong, or all of them."""
        if entries is None:
            return Places(self.owner, self.tensor_of)
        return Places(self.owner[entries], self.tensor_of[entries])

    @cached_property
    def variances(self) -> tuple[slice, ...]:
        """Where the running variances lie, which a sum of rounded changes must not take below zero."""
        start, found = 0, []
        for name, shape in self.shapes.items():
            if start >= self.num_parameter_entries and name.rpartition(".")[2] == "running_var":
                found.append(slice(start, start + shape.numel()))
            start += shape.numel()
        return tuple(found)

    @property
    def parameter_places(self) -> Places:
        """Where the trainable entries belong."""
        return Places(self.owner[: self.num_parameter_entries], self.tensor_of[: self.num_parameter_entries])

    @property
    def fingerprint(self) -> bytes:
        """Eight bytes that differ when names, shapes, order or ownership differ."""
        digest = hashlib.blake2b(digest_size=8)
        for name, shape in self.shapes.items():
            digest.update(f"{name}:{tuple(shape)};".encode())
        digest.update(f"{self.num_parameter_entries};".encode())
        digest.update(self.owner.to(torch.int32).numpy().tobytes())
        return digest.digest()

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
        views: dict[str, Tensor] = {}
        start = 0
        for name, shape in self.shapes.items():
            if start == vector.numel():
                break
            views[name] = vector[start : start + shape.numel()].view(shape)
            start += shape.numel()
        return views
