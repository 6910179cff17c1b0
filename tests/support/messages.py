"""Small messages, and what their headers are refused for."""

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st

from spatl.wire.blob import DIGEST_BYTES, with_digest
from spatl.wire.codec import Codec
from spatl.wire.codecs import CODECS
from spatl.wire.download import Download
from spatl.wire.reports import TrainReport
from spatl.wire.update import Update, pack_update, unpack_update
from spatl.wire.varints import read_varint
from tests.support.layouts import interleaved_layout, make_update

LAYOUT = interleaved_layout([(1, 3), (7, 4), (5, 2)], statistics=3)
FLOAT32 = CODECS["float32"]
CODECS_BY_NUMBER = {codec.number: codec for codec in CODECS.values()}
GENERATOR = torch.Generator()
REPORT = TrainReport(
    num_examples=100, accuracy=0.5, loss=1.25, train_loss=0.75, keep_ratio=0.5, flops_ratio=0.25, budget_kind=1,
    budget_limit=0.5, validation_gain=0.125, training_seconds=2.0, selection_seconds=1.0, decision_seconds=0.5,
    seconds=4.0,
)  # fmt: skip

masks = st.lists(st.booleans(), min_size=LAYOUT.num_channels, max_size=LAYOUT.num_channels)


def packed(mask, *, seed=0, step_weight=0.5, report=REPORT) -> tuple[bytes, Update]:
    values = torch.randn(LAYOUT.num_entries, generator=torch.Generator().manual_seed(seed))
    update = replace(make_update(LAYOUT, mask, values, step_weight=step_weight), corrected=True, report=report)
    return pack_update(update, LAYOUT, FLOAT32, generator=GENERATOR), update


def unpack(blob: bytes, codec: Codec = FLOAT32) -> Update:
    return unpack_update(blob, LAYOUT, codec, server_round=1, base_version=0)


def forged(blob: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A blob that `change` made of all of one but its digest, with a digest that is right: what a liar sends."""
    return with_digest(change(blob[:-DIGEST_BYTES]))


def written(place: int, form: str, *values: Any) -> Callable[[bytes], bytes]:
    """A change of bytes: other numbers at a place, little-endian."""

    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        struct.pack_into(f"<{form}", changed, place, *values)
        return bytes(changed)

    return change


def codec_of(blob: bytes) -> Codec:
    """The codec that a blob says it is written with; float32 where it is none of ours."""
    return CODECS_BY_NUMBER.get(blob[6], FLOAT32) if len(blob) > 6 else FLOAT32


def table_of(blob: bytes) -> tuple[int, list[tuple[int, int]], int]:
    """Where a blob's table of sections begins, its rows, kind and length, and where the sections begin."""
    num_numbers, num_bytes = {1: (4, 8), 2: (2, 8), 3: (2, 0), 4: (2, 0)}[blob[5]]
    place = 12
    for _ in range(num_numbers):
        _, place = read_varint(blob, place)
    start, rows = place + num_bytes, []
    place = start
    for _ in range(blob[7]):
        length, after = read_varint(blob, place + 1)
        rows.append((blob[place], length))
        place = after
    return start, rows, place


HEADER_CASES = [
    (0, "4s", b"EVIL", "not a SPATL blob"),
    (4, "B", 4, "format version 4, expected 5"),
    (4, "B", 99, "format version 99"),
    (5, "B", 0, "kind 0"),
    (6, "B", 200, "codec number 200"),
    (7, "B", 0, "promises"),
    (7, "B", 255, "is unknown or repeated"),
    (8, "4s", b"ones", "fingerprint"),
]
"""What both kinds of blob begin with: offset, form, a wrong value, and why it is refused."""


def download_of(**sections) -> Download:
    """A download of round 3 from version 1 to 2, without sections but for those that are given."""
    return Download(
        server_round=3, version=2, base_version=1, acknowledged_round=1, codec=CODECS["int8"], check=bytes(range(8)),
        **{"values": (), **sections},
    )  # fmt: skip
