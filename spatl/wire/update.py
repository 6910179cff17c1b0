"""Update of a client: the values of the channels that it sends, with its report, in one blob."""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection, pack_bitmap
from spatl.errors import UpdateRejected
from spatl.tasks.task import Measure
from spatl.wire.blob import (
    MEASURES,
    REPORT,
    UPDATE,
    VALUES,
    check_all_read,
    check_finite,
    indices_kind,
    open_blob,
    overhead_bytes,
    pack_blob,
    take_section,
    take_selection,
)
from spatl.wire.codec import Codec, Compact
from spatl.wire.measures import Judging
from spatl.wire.once import DECODED
from spatl.wire.reports import TrainReport
from spatl.wire.statistics import Arrival

_STEP_WEIGHT: Final = struct.Struct("<d")


@dataclass(frozen=True, eq=False)
class Update:
    """Update of a client: `values` of the selected entries, as the receiver decodes them.

    Attributes:
        server_round: The round it answers.
        base_version: The version of the encoder it was computed from.
        selection: The channels that travel (m_i).
        values: float32 [V], D_i at the selection's entries.
        step_weight: a_i, the accumulated step weight of the local run (greater than 0).
        corrected: Whether its gradients were corrected, and its c_i follows from it.
        report: What the client tells of its round; None where nobody asks.
        arrival: What it tells of the encoder that arrived; likewise.
        measures: What the evaluation in the report was measured by, where that is told.
        compact: Returns what the values as they arrived may be kept as in less memory; None where they cannot.
    """

    server_round: int
    base_version: int
    selection: Selection
    values: Tensor
    step_weight: float
    corrected: bool = False
    report: "TrainReport | None" = None
    arrival: Arrival | None = None
    measures: tuple[Measure, ...] = ()
    compact: Callable[[], Compact | None] = lambda: None


def pack_update(
    update: Update,
    layout: EncoderLayout,
    codec: Codec,
    *,
    generator: torch.Generator,
    max_bytes: int | None = None,
    judging: Judging | None = None,
) -> bytes:
    """Pack an update; `unpack_update` of the result gives the values the server will see.

    Args:
        update: What is sent, `values` as they are.
        layout: The encoder.
        codec: How values are encoded.
        generator: The source of stochastic rounding.
        max_bytes: How long the blob may be, for a codec that can choose; see `update_bytes` for the others.
        judging: By what the report's evaluation is judged; None for accuracy and loss alone.
    """
    nothing = torch.zeros(0)
    return pack_update_with_memory(
        update, layout, codec, generator=generator, memory=nothing, max_bytes=max_bytes, judging=judging
    )[0]


def pack_update_with_memory(
    update: Update, layout: EncoderLayout, codec: Codec, *, generator: torch.Generator, memory: Tensor,
    max_bytes: int | None = None, judging: Judging | None = None,
) -> tuple[bytes, Tensor]:  # fmt: skip
    """Pack an update as `pack_update` does, by a codec that has a memory of the sender's last one, and return the next.

    Args:
        update: As of `pack_update`, like the others.
        layout: Likewise.
        codec: Likewise.
        generator: Likewise.
        memory: As of `Codec.encode_with_memory`.
        max_bytes: As of `pack_update`.
        judging: Likewise.
    """
    sections = {indices_kind(update.selection): pack_bitmap(update.selection)}
    if update.report is not None:
        sections[REPORT] = update.report.to_bytes()
        if judging is not None and judging.task.tells_more:
            sections[MEASURES] = judging.to_bytes(update.measures)
    if update.arrival is not None:
        sections[update.arrival.section] = update.arrival.to_bytes()
    room = None
    if max_bytes is not None:
        around = overhead_bytes(UPDATE, *map(len, sections.values()), max_bytes) - max_bytes  # values of at most that
        room = max_bytes - around
    places = layout.places(update.selection)
    sections[VALUES], memory = codec.encode_with_memory(
        update.values, places, generator=generator, memory=memory, max_bytes=room
    )
    blob = pack_blob(
        UPDATE, codec, update.server_round, layout, sections, 2 * update.base_version + update.corrected,
        rest=_STEP_WEIGHT.pack(update.step_weight),
    )  # fmt: skip
    return blob, memory


def unpack_update(
    blob: bytes, layout: EncoderLayout, codec: Codec, *, server_round: int, base_version: int,
    num_arrived: int | None = None, judging: Judging | None = None, most_examples: int | None = None,
) -> Update:  # fmt: skip
    """Check and decode a client's update.

    Args:
        blob: The received bytes.
        layout: The encoder it must fit.
        codec: The codec it must be written with.
        server_round: The round it must answer.
        base_version: The version it must have been computed from.
        num_arrived: Number of channels with statistics that it tells of with the encoder's arrival; None where it does
            not tell of that.
        judging: As of `pack_update`.
        most_examples: Of how many test examples it may tell at most; None where nobody knows.

    Raises:
        UpdateRejected: The reason why the blob must not be used.
    """
    header, sections = open_blob(blob, UPDATE, layout, codec)
    (step_weight,) = _STEP_WEIGHT.unpack(header.rest)
    base, corrected = divmod(header.numbers[0], 2)
    if (header.server_round, base) != (server_round, base_version):
        raise UpdateRejected(
            f"the update answers round {header.server_round} from version {base}, "
            f"expected round {server_round} from version {base_version}"
        )
    if not (math.isfinite(step_weight) and step_weight > 0):
        raise UpdateRejected(f"the step weight must be positive and finite, got {step_weight}")
    selection = take_selection(sections, layout)
    judging = judging or Judging()
    report = None
    if REPORT in sections:
        told = TrainReport.from_bytes(sections.pop(REPORT), judging)
        report = replace(told, keep_ratio=selection.keep_ratio(layout))
    measures: tuple[Measure, ...] = ()
    if report is not None and judging.task.tells_more:
        sums = take_section(sections, MEASURES)
        measures = judging.from_bytes(sums, score=report.accuracy, most_examples=most_examples)
    arrival = None if num_arrived is None else Arrival.take(sections, num_arrived, with_accuracy=True, judging=judging)
    data = take_section(sections, VALUES)
    values, compact = DECODED.decode(codec, data, layout, selection)
    check_finite(values)
    check_all_read(sections)
    return Update(
        server_round, base, selection, values, step_weight, bool(corrected), report, arrival, measures,
        lambda: compact or codec.compact(data, layout.places(selection)),
    )  # fmt: skip


def update_bytes(layout: EncoderLayout, codec: Codec, *, num_values: int, num_channels: int) -> int:
    """The length of a packed update with so many values of so many channels: the largest, where it varies."""
    bitmap = 0 if num_channels == layout.num_channels else (layout.num_channels + 7) // 8
    values = codec.num_bytes(num_values=num_values, num_channels=num_channels)
    return overhead_bytes(UPDATE, TrainReport.num_bytes(), bitmap, values)
