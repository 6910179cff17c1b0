"""The codec `topk`: the hundredth of a message's values that is largest in magnitude, and nothing of the others.

Top-k sparsification with error feedback (Stich et al. 2018, arXiv 1809.07599, after Lin et al. 2018, arXiv 1712.01887):
what is not sent goes into the sender's next update (`feeds_back`). Of the latter paper's two remedies for momentum,
correction and factor masking, there is neither: they are for one gradient a message, where the sender's momentum runs
from message to message; here it begins anew with each round's local training, and is in the update as it stands.

Our choices: k is one in a hundred values of the whole message, rounded up. Which they are is told by a bit for each
value through this product's entropy coder, about 8 bits for each that is sent; the values are float16 of the largest.

Layout of the bytes: the largest magnitude, f32 | k values, f16, in their order | for each value, 1 where it is sent and
0 elsewhere (`spatl.wire.entropy`, one context). Nothing at all for no values.
"""

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor

from spatl.channels.layout import Places
from spatl.channels.vectors import all_finite
from spatl.errors import UpdateRejected
from spatl.wire.codec import Codec
from spatl.wire.entropy import decode_integers, encode_integers
from spatl.wire.packing import halves_bytes, read_halves

ONE_IN: Final = 100


class TopK(Codec):
    """The largest hundredth of the values, and zeros."""

    name = "topk"
    number = 16
    relative = True
    feeds_back = True

    def num_bytes(self, *, num_values: int, num_channels: int) -> int:
        """About three bytes for each value that is sent."""
        return (32 + 3 * num_sent(num_values)) if num_values else 0

    def encode(
        self, values: Tensor, places: Places, *, generator: torch.Generator, max_bytes: int | None = None
    ) -> bytes:
        """Write the largest values, of equal ones the first, and where they are."""
        number = num_sent(len(values))
        if number == 0:
            return b""
        exact = values.detach().to("cpu", torch.float32)
        if not all_finite(exact):
            return halves_bytes(np.full(number, math.nan))
        magnitudes = exact.abs().numpy()
        bound = np.partition(magnitudes, len(magnitudes) - number)[len(magnitudes) - number]
        sent = magnitudes > bound
        sent[np.flatnonzero(magnitudes == bound)[: number - int(sent.sum())]] = True
        halves = halves_bytes(exact.numpy()[sent])
        return halves + encode_integers(sent.astype(np.int32), np.zeros(len(sent), dtype=np.uint8))

    def decode(self, data: memoryview, places: Places) -> Tensor:
        """Put the values where they belong."""
        values = np.zeros(len(places), dtype=np.float32)
        number = num_sent(len(values))
        if number == 0:
            if len(data):
                raise UpdateRejected(f"expected 0 bytes of {self.name} values, got {len(data)}")
            return torch.from_numpy(values)
        own, rest = read_halves(data, number, self.name)
        sent = decode_integers(rest, np.zeros(len(values), dtype=np.uint8))
        if not ((sent == 0) | (sent == 1)).all() or int(sent.sum()) != number:
            raise UpdateRejected(f"expected {number} of {len(values)} {self.name} values to be sent, got others")
        values[sent == 1] = own
        return torch.from_numpy(values)


def num_sent(num_values: int) -> int:
    """k, of so many values: one in a hundred, rounded up."""
    return -(-num_values // ONE_IN)
