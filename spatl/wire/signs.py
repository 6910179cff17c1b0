"""The codec `signsgd`: one bit a value, its sign, and one number a tensor, the mean of its magnitudes.

It is the scaled sign of EF-signSGD, (||p||_1 / d) sign(p), by tensor (Karimireddy et al. 2019, arXiv 1901.09847,
algorithm 1 and section 6). It is far from unbiased, and converges since what it loses of an update goes into the
sender's next (`feeds_back`). The sign of zero is written as plus.

Layout of the bytes: a scale, f32, for each tensor that has values | one bit a value, least significant first, 1 for
minus | zeros up to the byte's end.
"""

import numpy as np
import torch
from torch import Tensor

from spatl.channels.layout import Places
from spatl.wire.codec import Codec, check_length
from spatl.wire.packing import bits_bytes, read_bits, read_scales, scales_bytes
from spatl.wire.runs import OfTensors


class ScaledSign(Codec):
    """Sign of each value times the mean magnitude of its tensor."""

    name = "signsgd"
    number = 18
    relative = True
    feeds_back = True

    def num_bytes(self, *, num_values: int, num_channels: int) -> int:
        """One bit a value, and a scale for each tensor, of which a network has fewer than channels."""
        return (num_values + 7) // 8 + 4 * num_channels

    def encode(
        self, values: Tensor, places: Places, *, generator: torch.Generator, max_bytes: int | None = None
    ) -> bytes:
        """Write scales and signs."""
        exact, tensors = values.detach().cpu().numpy(), OfTensors.of(places)
        with np.errstate(invalid="ignore"):
            sums = tensors.sums(np.abs(exact).astype(np.float64))
        scales = scales_bytes(sums / tensors.counts)
        return scales + bits_bytes(exact < 0)

    def decode(self, data: memoryview, places: Places) -> Tensor:
        """Read scales and signs."""
        tensors = OfTensors.of(places)
        end = 4 * len(tensors.counts)
        check_length(data, end + (len(places) + 7) // 8, self.name)
        scales = read_scales(data[:end], self.name)
        values = scales.take(tensors.ranks)
        np.negative(values, out=values, where=read_bits(data[end:], len(places), self.name))
        return torch.from_numpy(values)
