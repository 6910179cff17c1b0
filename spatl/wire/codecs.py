"""Table of codecs, by the name in a config and the number on the wire."""

from spatl.wire.adaptive import Adaptive
from spatl.wire.codec import Codec
from spatl.wire.floats import Float16, Float32
from spatl.wire.quantised import Int4, Int4Entropy, Int8, Int8Entropy, Ternary, TernaryEntropy

CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Float32(), Float16(), Int8(), Int4(), Ternary(), Int8Entropy(), Int4Entropy(), TernaryEntropy(),
        Adaptive(),
    )
}  # fmt: skip

CODECS_BY_NUMBER: dict[int, Codec] = {codec.number: codec for codec in CODECS.values()}
