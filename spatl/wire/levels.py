"""The codec `qsgd`: whole multiples of a share of a tensor's norm, rounded up or down at random, entropy-coded.

QSGD's quantiser (Alistarh et al. 2017, arXiv 1610.02132, equation 3), which FedPAQ takes for its updates (Reisizadeh et
al. 2020, arXiv 1909.13014, example 1): of v with n values, |v_j| / ||v||_2 lies between two of the s + 1 levels 0, 1/s,
..., 1, and becomes one of them at random, so that its mean is itself.

Our choices: a norm for each tensor, in which s is the root of n, rounded down: the dense regime of QSGD's corollary
3.3. The integers go through this product's entropy coder in place of Elias' code, which is longer; a tensor's context
is the number of bits of n, which both sides know.

Layout of the bytes: ||v||_2, f32, for each tensor that has values | the integers (`spatl.wire.entropy`).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatl.channels.layout import Places
from spatl.errors import UpdateRejected
from spatl.wire.codec import Codec
from spatl.wire.entropy import LARGEST_INTEGER, MAX_CONTEXTS, decode_integers, encode_integers
from spatl.wire.packing import read_scales, scales_bytes
from spatl.wire.runs import OfTensors


class NormLevels(Codec):
    """Levels of a tensor's norm, as many as the root of its number of values."""

    name = "qsgd"
    number = 20
    relative = True

    def num_bytes(self, *, num_values: int, num_channels: int) -> int:
        """About what QSGD's corollary 3.3 promises: 2.8 bits a value, and the norms."""
        return 16 + (14 * num_values + 39) // 40 + 4 * num_channels

    def encode(
        self, values: Tensor, places: Places, *, generator: torch.Generator, max_bytes: int | None = None
    ) -> bytes:
        """Round at random, and encode the integers."""
        exact, tensors = values.detach().cpu().numpy().astype(np.float64), OfTensors.of(places)
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.sqrt(tensors.sums(exact * exact))
        head = scales_bytes(norms)
        if not np.isfinite(np.frombuffer(head, dtype="<f4")).all():
            return head
        levels = levels_of(tensors.counts)
        per_unit = np.divide(levels, norms, out=np.zeros_like(norms), where=norms > 0)
        uniform = torch.rand(len(exact), generator=generator).numpy()
        rounded = np.floor(exact * per_unit.take(tensors.ranks) + uniform)
        bound = levels.take(tensors.ranks)
        return head + encode_integers(np.clip(rounded, -bound, bound).astype(np.int32), _contexts(tensors))

    def decode(self, data: memoryview, places: Places) -> Tensor:
        """Read the integers, times their tensor's step."""
        tensors = OfTensors.of(places)
        end = 4 * len(tensors.counts)
        if len(data) < end:
            raise UpdateRejected(f"{len(data)} bytes of {self.name} values, fewer than their first {end}")
        norms, levels = read_scales(data[:end], self.name), levels_of(tensors.counts)
        integers = decode_integers(data[end:], _contexts(tensors))
        if (np.abs(integers) > levels.take(tensors.ranks)).any():
            raise UpdateRejected(f"a {self.name} value exceeds the levels of its tensor")
        values = (norms / levels.astype(np.float32)).take(tensors.ranks)
        values *= integers.astype(np.float32)
        return torch.from_numpy(values)


def levels_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [T], s of tensors with so many values: the root, rounded down."""
    roots = np.sqrt(counts.astype(np.float64)).astype(np.int64)
    return roots.clip(max=LARGEST_INTEGER)


def _contexts(tensors: OfTensors) -> NDArray[np.uint8]:
    """uint8 [V], the number of bits of the number of values of each value's tensor."""
    bits = np.searchsorted(1 << np.arange(MAX_CONTEXTS - 1), tensors.counts, side="right").astype(np.uint8)
    return bits.take(tensors.ranks)
