"""The message contract: one packed blob each way, checked from the first byte before anything of it is used.

A blob is a 40-byte header, a table of sections and the sections themselves, all little-endian:

    magic "SPTL" | version u8 | kind u8 | codec u8 | sections u8 | round u32 | base u32 | fingerprint 8 bytes
    | step weight f64 | payload bytes u64 | then per section: kind u8, length u32 | then the sections, in that order

`kind` tells the server's model from a client's update; `base` is the version of the encoder that an update was
computed from; `fingerprint` is the layout's, so that both sides mean the same entries by the same positions.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final, Self

import numpy as np
import torch
from torch import Tensor

from spatl.codec import CODECS_BY_NUMBER, Codec
from spatl.errors import UpdateRejected
from spatl.selection.budget import BUDGET_KINDS
from spatl.selection.layout import EncoderLayout
from spatl.selection.selection import Selection, pack_bitmap, unpack_bitmap

CLIENT_REFUSED: Final = 100  # error codes of a client's reply, beyond Flower's own
CLIENT_DIVERGED: Final = 101

MAGIC: Final = b"SPTL"
VERSION: Final = 1
_HEADER = struct.Struct("<4sBBBBII8sdQ")
_SECTION = struct.Struct("<BI")
_MODEL, _UPDATE = 1, 2
_VALUES, _INDICES, _CONTROL, _CLOSED_INDICES = 1, 2, 3, 4
_SECTION_NAMES = {_VALUES: "values", _INDICES: "indices", _CONTROL: "control", _CLOSED_INDICES: "indices"}


@dataclass(frozen=True, eq=False)
class Update:
    """What a client sends: `values` of the selected entries, as the receiver decodes them.

    Attributes:
        server_round: The round it answers.
        base_version: The version of the encoder it was computed from.
        selection: The channels that travel (m_i).
        values: float32 [V], D_i at the selection's entries.
        step_weight: a_i, the accumulated step weight of the local run (greater than 0).
    """

    server_round: int
    base_version: int
    selection: Selection
    values: Tensor
    step_weight: float


@dataclass(frozen=True, eq=False)
class Model:
    """What the server sends.

    Attributes:
        server_round: The round it opens.
        version: The version of the encoder: how many rounds have changed it.
        encoder: float32 [N], x.
        control: float32 [P], c; None where gradients are not corrected.
        selection: The channels that travel and are trained, where all clients have the same; x is zero elsewhere.
    """

    server_round: int
    version: int
    encoder: Tensor
    control: Tensor | None
    selection: Selection | None = None


_LARGEST_SALIENCY: Final = 1e30
LARGEST_METRIC: Final = 1e9
"""A loss above it belongs to no training that still works."""
_LARGEST: Final = {
    **dict.fromkeys(("accuracy", "keep-ratio", "flops-ratio", "validation-gain"), 1.0),
    "budget-kind": float(len(BUDGET_KINDS)),
    "budget-limit": math.inf,  # a client may say that it has no limit to speak of
}


class _Report:
    """A flat dataclass of numbers that travels as scalar metrics; `num_examples` is "num-examples" on the wire."""

    def to_metrics(self) -> dict[str, int | float]:
        """The metrics of a reply, by their names on the wire."""
        return {name.replace("_", "-"): value for name, value in vars(self).items()}

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, object]) -> Self:
        """Read what `to_metrics` wrote.

        Raises:
            UpdateRejected: A metric is missing or not a finite number.
        """
        values: dict[str, int | float] = {}
        for field in fields(cls):  # type: ignore[arg-type]  # the subclasses are dataclasses
            name = field.name.replace("_", "-")
            value = metrics.get(name)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise UpdateRejected(f"the metric {name} must be a finite number, got {value}")
            if field.type is int and not isinstance(value, int):
                raise UpdateRejected(f"the metric {name} must be a whole number, got {value}")
            highest = _LARGEST.get(name, LARGEST_METRIC)
            if not 0 <= value <= highest:
                raise UpdateRejected(f"the metric {name} must lie in [0, {highest:g}], got {value}")
            values[field.name] = value
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class TrainReport(_Report):
    """What a client tells with its update; accuracy and loss are of the encoder as it arrived, on the test split.

    Attributes:
        budget_kind: 1 + the position in `BUDGET_KINDS`, 0 for a client that selects nothing.
        budget_limit: The client's budget, in the unit of its kind.
        validation_gain: By how much the selection beats the selector's prior on the validation split.
        selection_seconds: How long selecting took, of which `decision_seconds` without measuring anything.
    """

    num_examples: int
    accuracy: float
    loss: float
    train_loss: float
    keep_ratio: float
    flops_ratio: float
    budget_kind: int
    budget_limit: float
    validation_gain: float
    training_seconds: float
    selection_seconds: float
    decision_seconds: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class EvaluateReport(_Report):
    """What a client tells of the encoder after the last round, on its test split."""

    num_examples: int
    accuracy: float
    loss: float


def pack_update(update: Update, layout: EncoderLayout, codec: Codec, *, generator: torch.Generator) -> bytes:
    """Pack an update; `unpack_update` of the result gives the values the server will see."""
    channels = _channels_of_values(update.selection, layout)
    sections = {
        _indices_kind(update.selection): pack_bitmap(update.selection),
        _VALUES: codec.encode(update.values, channels, generator=generator),
    }
    return _pack(_UPDATE, codec, update.server_round, update.base_version, layout, update.step_weight, sections)


def unpack_update(blob: bytes, layout: EncoderLayout, *, server_round: int, base_version: int) -> Update:
    """Check and decode a client's update.

    Args:
        blob: The received bytes.
        layout: The encoder it must fit.
        server_round: The round it must answer.
        base_version: The version it must have been computed from.

    Raises:
        UpdateRejected: The reason why the blob must not be used.
    """
    header, codec, sections = _open(blob, _UPDATE, layout)
    if (header.server_round, header.base) != (server_round, base_version):
        raise UpdateRejected(
            f"the update answers round {header.server_round} from version {header.base}, "
            f"expected round {server_round} from version {base_version}"
        )
    if not (math.isfinite(header.step_weight) and header.step_weight > 0):
        raise UpdateRejected(f"the step weight must be positive and finite, got {header.step_weight}")
    selection = _take_selection(sections, layout)
    values = codec.decode(_take(sections, _VALUES), _channels_of_values(selection, layout))
    _check_finite(values)
    _check_empty(sections)
    return Update(header.server_round, header.base, selection, values, header.step_weight)


def pack_model(model: Model, layout: EncoderLayout, codec: Codec, *, generator: torch.Generator) -> bytes:
    """Pack the server's model for the clients of a round."""
    if model.selection is None:
        sections = {_VALUES: codec.encode(model.encoder, layout.owner, generator=generator)}
    else:
        channels = _channels_of_values(model.selection, layout)
        values = model.encoder[model.selection.entries(layout)]
        sections = {
            _indices_kind(model.selection): pack_bitmap(model.selection),
            _VALUES: codec.encode(values, channels, generator=generator),
        }
    if model.control is not None:
        owner = layout.owner[: layout.num_parameter_entries]
        sections[_CONTROL] = codec.encode(model.control, owner, generator=generator)
    return _pack(_MODEL, codec, model.server_round, model.version, layout, 0.0, sections)


def unpack_model(blob: bytes, layout: EncoderLayout) -> Model:
    """Check and decode the server's model.

    Raises:
        UpdateRejected: The reason why the blob must not be used.
    """
    header, codec, sections = _open(blob, _MODEL, layout)
    selection = None
    if sections.keys() & {_INDICES, _CLOSED_INDICES}:
        selection = _take_selection(sections, layout)
        values = codec.decode(_take(sections, _VALUES), _channels_of_values(selection, layout))
        encoder = torch.zeros(layout.num_entries).index_copy_(0, selection.entries(layout), values)
    else:
        encoder = codec.decode(_take(sections, _VALUES), layout.owner)
    _check_finite(encoder)
    control = None
    if _CONTROL in sections:
        control = codec.decode(_take(sections, _CONTROL), layout.owner[: layout.num_parameter_entries])
        _check_finite(control)
    _check_empty(sections)
    return Model(header.server_round, header.base, encoder, control, selection)


def pack_saliency(saliency: Tensor) -> bytes:
    """Pack a client's channel saliency, float32 [C] (`selection.static`): its numbers, little-endian."""
    return saliency.numpy().astype("<f4", copy=False).tobytes()


def unpack_saliency(blob: bytes, layout: EncoderLayout) -> Tensor:
    """Check and read what `pack_saliency` wrote.

    Raises:
        UpdateRejected: It is not one finite number per channel, at least 0 and not absurdly large.
    """
    if len(blob) != 4 * layout.num_channels:
        raise UpdateRejected(f"expected {4 * layout.num_channels} bytes of channel saliency, got {len(blob)}")
    saliency = torch.from_numpy(np.frombuffer(blob, dtype="<f4").astype(np.float32))
    if not bool(((saliency >= 0) & (saliency < _LARGEST_SALIENCY)).all()):
        raise UpdateRejected("channel saliency must be finite numbers from 0")
    return saliency


def update_bytes(layout: EncoderLayout, codec: Codec, *, num_values: int, num_channels: int) -> int:
    """The length of a packed update with so many values of so many channels."""
    bitmap = 0 if num_channels == layout.num_channels else (layout.num_channels + 7) // 8
    values = codec.num_bytes(num_values=num_values, num_channels=num_channels)
    return _HEADER.size + 2 * _SECTION.size + bitmap + values


def section_bytes(blob: bytes) -> dict[str, int]:
    """Return the bytes of a blob's values, indices and control sections, by name; the rest is overhead.

    Raises:
        UpdateRejected: The blob is damaged.
    """
    _, sections = _open_sections(blob)
    lengths = dict.fromkeys(_SECTION_NAMES.values(), 0)
    for kind, data in sections.items():
        lengths[_SECTION_NAMES[kind]] += len(data)
    return lengths


@dataclass(frozen=True)
class _Header:
    magic: bytes
    version: int
    kind: int
    codec: int
    num_sections: int
    server_round: int
    base: int
    fingerprint: bytes
    step_weight: float
    payload_bytes: int


def _pack(
    kind: int,
    codec: Codec,
    server_round: int,
    base: int,
    layout: EncoderLayout,
    step_weight: float,
    sections: Mapping[int, bytes],
) -> bytes:
    payload_bytes = sum(len(data) for data in sections.values())
    header = _HEADER.pack(
        MAGIC, VERSION, kind, codec.number, len(sections), server_round, base, layout.fingerprint, step_weight,
        payload_bytes,
    )  # fmt: skip
    table = [_SECTION.pack(section, len(data)) for section, data in sections.items()]
    return b"".join([header, *table, *sections.values()])


def _open(blob: bytes, kind: int, layout: EncoderLayout) -> tuple[_Header, Codec, dict[int, memoryview]]:
    """Check the header against what was expected and return views of the sections."""
    header, sections = _open_sections(blob)
    if header.kind != kind:
        raise UpdateRejected(f"blob kind {header.kind}, expected {kind}")
    if header.fingerprint != layout.fingerprint:
        raise UpdateRejected(
            f"the model's fingerprint is {header.fingerprint.hex()}, expected {layout.fingerprint.hex()}: "
            "the two sides were built from different configs"
        )
    codec = CODECS_BY_NUMBER.get(header.codec)
    if codec is None:
        raise UpdateRejected(f"unknown codec number {header.codec}")
    return header, codec, sections


def _open_sections(blob: bytes) -> tuple[_Header, dict[int, memoryview]]:
    """Check that a blob is one, and whole, and return its header and views of its sections by kind."""
    if len(blob) < _HEADER.size:
        raise UpdateRejected(f"the blob has {len(blob)} bytes, fewer than a header's {_HEADER.size}")
    header = _Header(*_HEADER.unpack_from(blob))
    if header.magic != MAGIC:
        raise UpdateRejected(f"not a SPATL blob: it starts with {header.magic!r}")
    if header.version != VERSION:
        raise UpdateRejected(f"blob format version {header.version}, expected {VERSION}")
    start = _HEADER.size + header.num_sections * _SECTION.size
    if len(blob) != start + header.payload_bytes:
        raise UpdateRejected(f"the blob has {len(blob)} bytes, its header promises {start + header.payload_bytes}")
    sections: dict[int, memoryview] = {}
    for position in range(header.num_sections):
        kind, length = _SECTION.unpack_from(blob, _HEADER.size + position * _SECTION.size)
        if kind in sections or kind not in _SECTION_NAMES:
            raise UpdateRejected(f"section {kind} is unknown or repeated")
        if start + length > len(blob):
            raise UpdateRejected(f"section {kind} runs over the end of the blob")
        sections[kind] = memoryview(blob)[start : start + length]
        start += length
    if start != len(blob):
        raise UpdateRejected(f"{len(blob) - start} bytes belong to no section")
    return header, sections


def _indices_kind(selection: Selection) -> int:
    return _CLOSED_INDICES if selection.closed else _INDICES


def _take_selection(sections: dict[int, memoryview], layout: EncoderLayout) -> Selection:
    closed = _CLOSED_INDICES in sections
    if closed and layout.reads is None:
        raise UpdateRejected("the blob's channels are gone for good, which this encoder does not know")
    bitmap = _take(sections, _CLOSED_INDICES if closed else _INDICES)
    return unpack_bitmap(bitmap, layout.num_channels, closed=closed)


def _take(sections: dict[int, memoryview], kind: int) -> memoryview:
    if kind not in sections:
        raise UpdateRejected(f"the blob has no {_SECTION_NAMES[kind]} section")
    return sections.pop(kind)


def _check_empty(sections: Mapping[int, memoryview]) -> None:
    if sections:
        raise UpdateRejected(f"unexpected {_SECTION_NAMES[next(iter(sections))]} section")


def _check_finite(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise UpdateRejected("the values contain NaN or infinity")


def _channels_of_values(selection: Selection, layout: EncoderLayout) -> Tensor:
    """int64 [V]: the position among the selected channels of the channel each value belongs to."""
    position = selection.mask.cumsum(0) - 1
    return position[layout.owner[selection.entries(layout)]]
