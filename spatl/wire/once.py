"""Values that were decoded, kept for who reads the same bytes next: in a simulation, clients and server of one process.

A client decodes its own update, for its control variate is to follow from what the server will see; the server then
gets the same bytes. What comes out of a codec depends on nothing but the bytes and the places, so that reading them
once is enough. Of a small encoder the values are kept; of a large one, whose memory is dearer, the last that were
read, in as little as the codec can, until they are asked for again.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection
from spatl.wire.codec import Codec, Compact, expanded

KEPT_VALUES: Final = 2**20
"""Values that are kept at a time, the last ones; 4 MiB."""

_Key = tuple[int, bytes, bytes, bytes, bool]


class DecodedValues:
    """Decoded values by the bytes that they came from, the last `KEPT_VALUES` of them."""

    def __init__(self) -> None:
        self._kept: OrderedDict[_Key, tuple[Codec, Tensor]] = OrderedDict()
        self._number = 0
        self._last: _Read | None = None

    def decode(
        self, codec: Codec, data: bytes | memoryview, layout: EncoderLayout, chosen: Selection
    ) -> tuple[Tensor, Compact | None]:
        """Decode the values of some channels, or return a copy of what the same bytes were decoded to.

        Args:
            codec: What they are written with.
            data: The bytes.
            layout: The encoder.
            chosen: The channels.

        Returns:
            float32 [V], the caller's own; and what makes the same of less memory, where that was read.

        Raises:
            UpdateRejected: The bytes are not values of these places.
        """
        if layout.num_entries > KEPT_VALUES // 2:
            return self._of_large(codec, memoryview(data), layout, chosen)
        key = id(codec), bytes(data), *_places_key(layout, chosen)
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found[1].clone(), None
        values = codec.decode(memoryview(data), layout.places(chosen))
        self._kept[key] = codec, values.clone()  # the codec, so that no other one gets its id
        self._number += len(values)
        while self._number > KEPT_VALUES:
            self._number -= len(self._kept.popitem(last=False)[1][1])
        return values, None

    def _of_large(
        self, codec: Codec, data: memoryview, layout: EncoderLayout, chosen: Selection
    ) -> tuple[Tensor, Compact | None]:
        """Decode those of a large encoder, and keep what they are made of until the same bytes come again."""
        key, places = (id(codec), *_places_key(layout, chosen)), layout.places(chosen)
        last, self._last = self._last, None
        if last is not None and last.key == key and last.data == data:
            return expanded(last.compact, len(places)), last.compact
        compact = codec.compact(data, places)
        if compact is None:
            return codec.decode(data, places), None
        self._last = _Read(key, bytes(data), codec, compact)
        return expanded(compact, len(places)), compact


@dataclass(frozen=True, eq=False)
class _Read:
    """What was read last of a large encoder, and of which bytes; the codec, so that no other one gets its id."""

    key: tuple[int, bytes, bytes, bool]
    data: bytes
    codec: Codec
    compact: Compact


def _places_key(layout: EncoderLayout, chosen: Selection) -> tuple[bytes, bytes, bool]:
    return layout.fingerprint, chosen.mask.numpy().tobytes(), chosen.closed


DECODED: Final = DecodedValues()
"""What this process has decoded."""
