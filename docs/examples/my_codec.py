"""Two codecs: the upper half of a float32 for updates, and one bit a value for changes of the encoder."""

import numpy as np
import torch
from torch import Tensor

from spatl.channels.layout import Places
from spatl.wire.codec import Codec, check_length


class BFloat16(Codec):
    """Two bytes a value: 8 bits of exponent, so that a value of any size comes through, and 8 bits of precision."""

    relative = False

    def num_bytes(self, *, num_values: int, num_channels: int) -> int:
        """Return the length of what `encode` writes."""
        return 2 * num_values

    def encode(
        self, values: Tensor, places: Places, *, generator: torch.Generator, max_bytes: int | None = None
    ) -> bytes:
        """Round to nearest; NaN and infinity stay what they are, and the receiver refuses them."""
        return values.detach().cpu().to(torch.bfloat16).view(torch.int16).numpy().astype("<i2").tobytes()

    def decode(self, data: memoryview, places: Places) -> Tensor:
        """Return float32 [V]."""
        check_length(data, 2 * len(places), "bfloat16")
        return torch.from_numpy(np.frombuffer(data, "<i2").astype(np.int16)).view(torch.bfloat16).float()


class Sign(Codec):
    """One bit a value: all go up or down by their mean magnitude (Seide et al. 2014, 1-bit SGD).

    It is far too coarse for weights, so that it is relative: it is given x less what the clients hold of it, and what
    it loses of one change is part of the next.
    """

    relative = True

    def num_bytes(self, *, num_values: int, num_channels: int) -> int:
        """Return the length of what `encode` writes."""
        return 4 + (num_values + 7) // 8

    def encode(
        self, values: Tensor, places: Places, *, generator: torch.Generator, max_bytes: int | None = None
    ) -> bytes:
        """Write the mean magnitude and the signs, eight to a byte."""
        exact = values.detach().cpu().numpy()
        mean = np.abs(exact).mean(dtype=np.float64) if len(exact) else 0.0
        return np.array(mean, "<f4").tobytes() + np.packbits(exact >= 0).tobytes()

    def decode(self, data: memoryview, places: Places) -> Tensor:
        """Return float32 [V]."""
        check_length(data, self.num_bytes(num_values=len(places), num_channels=0), "sign")
        mean = np.frombuffer(data[:4], "<f4").astype(np.float32)
        up = np.unpackbits(np.frombuffer(data[4:], np.uint8), count=len(places)).astype(np.float32)
        return torch.from_numpy((2 * up - 1) * mean)
