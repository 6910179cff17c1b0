"""Owners of all tensors by the pattern that those of each repeat: how many entries some channels have."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Patterns:
    """Owners of all tensors, one after another, each with as many entries of its tensor.

    Attributes:
        owners: int64 [L], the patterns of their labels.
        edges: int64 [T + 1], where those of each tensor begin, and the end of all.
        entries: int64 [T], how many entries of each tensor one label stands for.
    """

    owners: Tensor
    edges: Tensor
    entries: Tensor

    @classmethod
    def of(cls, patterns: Sequence[Tensor], sizes: Tensor) -> "Patterns":
        """The owners of tensors of some sizes, int64 [T], by the labels of each (`Labels.pattern`)."""
        edges = torch.tensor([0, *(len(each) for each in patterns)]).cumsum(0)
        owners = torch.cat([torch.zeros(0, dtype=torch.int64), *patterns])
        return cls(owners, edges, sizes // edges.diff().clamp(min=1))

    def counts(self, mask: Tensor) -> Tensor:
        """int64 [T]: how many entries of each tensor belong to the channels of a mask, bool [C]."""
        before = torch.zeros(len(self.owners) + 1, dtype=torch.int64)
        torch.cumsum(mask[self.owners], 0, out=before[1:])
        return before[self.edges].diff() * self.entries
