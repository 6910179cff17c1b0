"""Table of codecs, by the name in a config and the number on the wire."""

from spatl.wire.adaptive import Adaptive
from spatl.wire.codec import Codec
from spatl.wire.dithered import Dithered
from spatl.wire.floats import Float16, Float32
from spatl.wire.levels import NormLevels
from spatl.wire.low_rank import PowerSGD, PowerSGDRank1
from spatl.wire.quantised import Int4, Int4Entropy, Int8, Int8Entropy, Ternary, TernaryEntropy
from spatl.wire.rotated import Rotated
from spatl.wire.signs import ScaledSign
from spatl.wire.sparse import TopK

CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Float32(), Float16(), Int8(), Int4(), Ternary(), Int8Entropy(), Int4Entropy(), TernaryEntropy(),
        Adaptive(), Dithered(), TopK(), Rotated(), ScaledSign(), PowerSGD(), NormLevels(), PowerSGDRank1(),
    )
}  # fmt: skip

CODECS_BY_NUMBER: dict[int, Codec] = {codec.number: codec for codec in CODECS.values()}
