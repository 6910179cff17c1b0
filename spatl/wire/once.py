"""Values that were decoded, kept for who reads the same bytes next: in a simulation, clients and server of one process.

A client decodes its own update, for its control variate is to follow from what the server will see; the server then
gets the same bytes. What comes out of a codec depends on nothing but the bytes and the places, so that reading them
once is enough. Only small encoders are kept: of a large one, memory is dearer than a second reading.
"""

from collections import OrderedDict
from typing import Final

from torch import Tensor

from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection
from spatl.wire.codec import Codec

KEPT_VALUES: Final = 2**20
"""Values that are kept at a time, the last ones; 4 MiB."""

_Key = tuple[int, bytes, bytes, bytes, bool]


class DecodedValues:
    """Decoded values by the bytes that they came from, the last `KEPT_VALUES` of them."""

    def __init__(self) -> None:
        self._kept: OrderedDict[_Key, tuple[Codec, Tensor]] = OrderedDict()
        self._number = 0

    def decode(self, codec: Codec, data: bytes | memoryview, layout: EncoderLayout, chosen: Selection) -> Tensor:
        """Decode the values of some channels, or return a copy of what the same bytes were decoded to.

        Args:
            codec: What they are written with.
            data: The bytes.
            layout: The encoder.
            chosen: The channels.

        Returns:
            float32 [V], the caller's own.

        Raises:
            UpdateRejected: The bytes are not values of these places.
        """
        if layout.num_entries > KEPT_VALUES // 2:
            return codec.decode(memoryview(data), layout.places(chosen))
        key = id(codec), bytes(data), layout.fingerprint, chosen.mask.numpy().tobytes(), chosen.closed
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found[1].clone()
        values = codec.decode(memoryview(data), layout.places(chosen))
        self._kept[key] = codec, values.clone()  # the codec, so that no other one gets its id
        self._number += len(values)
        while self._number > KEPT_VALUES:
            self._number -= len(self._kept.popitem(last=False)[1][1])
        return values


DECODED: Final = DecodedValues()
"""What this process has decoded."""
