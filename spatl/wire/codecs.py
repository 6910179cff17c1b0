"""Table of codecs, by the name in a config; each is made when it is asked for, and has its number on the wire."""

from typing import TYPE_CHECKING, Final

from spatl.errors import ConfigError
from spatl.extensions.late import LateModule, LateTable
from spatl.extensions.references import Door

if TYPE_CHECKING:
    from spatl.wire import adaptive, dithered, floats, levels, low_rank, quantised, rotated, signs, sparse
    from spatl.wire.codec import Codec
else:
    adaptive, dithered, floats, levels, low_rank, quantised, rotated, signs, sparse = (
        LateModule(f"spatl.wire.{name}")
        for name in (
            "adaptive", "dithered", "floats", "levels", "low_rank", "quantised", "rotated", "signs", "sparse",
        )
    )  # fmt: skip

CODEC_DOOR: Final = Door(
    "codec", "wire.uplink or wire.downlink", "package.module:Codec", error=ConfigError,
    expected="a class derived from spatl.wire.codec.Codec, or an object of one",
)  # fmt: skip

CODECS: "LateTable[Codec]" = LateTable({
    "float32": floats.Float32,
    "float16": floats.Float16,
    "int8": quantised.Int8,
    "int4": quantised.Int4,
    "ternary": quantised.Ternary,
    "int8-entropy": quantised.Int8Entropy,
    "int4-entropy": quantised.Int4Entropy,
    "ternary-entropy": quantised.TernaryEntropy,
    "adaptive": adaptive.Adaptive,
    "dithered": dithered.Dithered,
    "topk": sparse.TopK,
    "eden": rotated.Rotated,
    "signsgd": signs.ScaledSign,
    "powersgd": low_rank.PowerSGD,
    "qsgd": levels.NormLevels,
    "powersgd-rank1": low_rank.PowerSGDRank1,
})  # fmt: skip
