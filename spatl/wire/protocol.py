"""The message contract: one packed blob each way, checked from the first byte before anything of it is used.

A blob is a header, a table of sections and the sections themselves, all little-endian; `docs/wire-format.md` has every
byte. Both kinds of blob begin alike: magic, version of the format, kind, codec, round, the layout's fingerprint (so
that both sides mean the same entries by the same positions). A download (the server's) goes on with the version of the
encoder it leads to and the one it starts from; an update (a client's) with the version it was computed from.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Tensor

from spatl.channels.costs import BUDGET_KINDS
from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection, pack_bitmap, unpack_bitmap
from spatl.channels.vectors import all_finite
from spatl.errors import UpdateRejected
from spatl.wire.codec import CODECS_BY_NUMBER, Codec

CLIENT_REFUSED: Final = 100  # error codes of a client's reply, beyond Flower's own
CLIENT_DIVERGED: Final = 101
CLIENT_LOST: Final = 102
"""The client does not hold what the server's changes start from."""
CLIENT_FAILED: Final = 103
"""An exception of the model's, or a bug: its reason goes on with a traceback."""

RECORD, BLOB = "spatl", "blob"
"""Where a message has its blob: a bytes value of a config record, which costs 183 bytes and two objects around it; an
array would cost 485 and four."""
AGREED, DESCRIPTION, DIGEST, REFUSED = "agreed", "description", "data", "refused"
"""What else the record of a registration may have: what the clients have agreed on, as JSON; what a device's own data
are like (`spatl.data.own`); the digest of a data set that is shared out; why a client cannot take part."""
RECORD_BYTES: Final = 190
"""What Flower's records add to a blob, at most."""

MAGIC: Final = b"SPTL"
VERSION: Final = 3
CHECK_BYTES: Final = 8
_HEADER = struct.Struct("<4sBBBBI8sQ")
_DOWNLOAD_HEADER = struct.Struct(f"<III{CHECK_BYTES}s")
_UPDATE_HEADER = struct.Struct("<IdB")
_SECTION = struct.Struct("<BQ")
_LENGTH = struct.Struct("<I")
_DERIVED_CONTROL = struct.Struct("<ffB")
_DOWNLOAD, _UPDATE = 1, 2
_VALUES, _INDICES, _CONTROL, _CLOSED_INDICES, _REPORT, _BASE, _SNAPSHOT, _DERIVED = 1, 2, 3, 4, 5, 6, 7, 8
_SECTION_NAMES = {
    _VALUES: "values",
    _INDICES: "indices",
    _CONTROL: "control",
    _CLOSED_INDICES: "indices",
    _REPORT: "report",
    _BASE: "values",
    _SNAPSHOT: "values",
    _DERIVED: "control",
}
_COUNTED: Final = ("values", "indices", "control")  # by name in the ledger; the rest is overhead


@dataclass(frozen=True, eq=False)
class Update:
    """What a client sends: `values` of the selected entries, as the receiver decodes them.

    Attributes:
        server_round: The round it answers.
        base_version: The version of the encoder it was computed from.
        selection: The channels that travel (m_i).
        values: float32 [V], D_i at the selection's entries.
        step_weight: a_i, the accumulated step weight of the local run (greater than 0).
        corrected: Whether its gradients were corrected, and its c_i follows from it.
        report: What the client tells of its round; None where nobody asks.
    """

    server_round: int
    base_version: int
    selection: Selection
    values: Tensor
    step_weight: float
    corrected: bool = False
    report: "TrainReport | None" = None


@dataclass(frozen=True, eq=False)
class Model:
    """What a client works with in a round, once it has followed the server's changes.

    Attributes:
        server_round: The round it opens.
        version: The version of the encoder: how many times changes were sent out.
        encoder: float32 [N], x as the clients hold it.
        control: float32 [P], c as the clients hold it; None where this client's gradients are not corrected.
        selection: The channels that travel and are trained, where all clients have the same; x is zero elsewhere.
    """

    server_round: int
    version: int
    encoder: Tensor
    control: Tensor | None
    selection: Selection | None = None


@dataclass(frozen=True)
class DerivedControl:
    """What the change of c follows from, beside the change of the encoder (`reference.followed_control`).

    Attributes:
        damping: rho times the share of the clients' weight that stood behind the last change, in [0, 1].
        step_weight: The clients' mean step weight; 0 while there is nothing to follow from.
        valid: Whether this client holds c; one that missed a change does not, for a while.
    """

    damping: float
    step_weight: float
    valid: bool


@dataclass(frozen=True, eq=False)
class Download:
    """What the server sends to one client: the encoder, or what leads to it from a version the client holds.

    Attributes:
        server_round: The round it opens.
        version: The version it leads to.
        base_version: The version it starts from; 0 is the initial encoder, which everybody builds from the seed.
        acknowledged_round: The last round of this client that the server has folded in, 0 for none.
        codec: How values and control are encoded.
        check: 8 bytes of a digest of the encoder it leads to.
        values: Encoded values. For a codec of whole values one string; for a codec of changes one for each change, in
            order; none at all with a snapshot.
        snapshot: int32 [V], the change since version 0 in units of 2^-24, where nothing shorter leads there.
        base: float32 [N], the initial encoder, for a client that cannot build it.
        control: Encoded c; None where it is not sent.
        derived: What c follows from; None where it does not.
        selection: The channels that are trained at all, where all clients have the same.
    """

    server_round: int
    version: int
    base_version: int
    acknowledged_round: int
    codec: Codec
    check: bytes
    values: tuple[bytes, ...]
    snapshot: Tensor | None = None
    base: Tensor | None = None
    control: bytes | None = None
    derived: DerivedControl | None = None
    selection: Selection | None = None


_LARGEST_SALIENCY: Final = 1e30
LARGEST_METRIC: Final = 1e9
"""A loss above it belongs to no training that still works."""
ROUNDING: Final = 1e-9
"""By how much a share may leave [0, 1] in a report: sums of floats do, on one platform or another."""
_LARGEST: Final = {
    **dict.fromkeys(("accuracy", "keep_ratio", "flops_ratio", "validation_gain"), 1.0),
    "budget_kind": float(len(BUDGET_KINDS)),
    "budget_limit": math.inf,  # a client may say that it has no limit to speak of
}


class _Report:
    """A flat dataclass of numbers, each of which names its place in a `struct`."""

    @classmethod
    def _struct(cls) -> struct.Struct:
        return struct.Struct("<" + "".join(each.metadata["format"] for each in fields(cls)))  # type: ignore[arg-type]

    def to_bytes(self) -> bytes:
        """The numbers, one after another."""
        return self._struct().pack(*vars(self).values())

    @classmethod
    def num_bytes(cls) -> int:
        """How many bytes `to_bytes` writes."""
        return cls._struct().size

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            UpdateRejected: The length is wrong, or a number is out of its range.
        """
        form = cls._struct()
        if len(data) != form.size:
            raise UpdateRejected(f"expected a report of {form.size} bytes, got {len(data)}")
        values = dict(zip((each.name for each in fields(cls)), form.unpack(data), strict=True))  # type: ignore[arg-type]
        for name, value in values.items():
            highest = _LARGEST.get(name, LARGEST_METRIC)
            if not -ROUNDING <= value <= highest + ROUNDING:
                raise UpdateRejected(f"the report's {name} must lie in [0, {highest:g}], got {value}")
            values[name] = min(max(value, type(value)()), highest)
        return cls(**values)


def _number(form: str) -> Any:
    return field(metadata={"format": form})


@dataclass(frozen=True, kw_only=True)
class TrainReport(_Report):
    """What a client tells with its update; accuracy and loss are of the encoder as it arrived, on the test split.

    Attributes:
        budget_kind: 1 + the position in `BUDGET_KINDS`, 0 for a client that selects nothing.
        budget_limit: The client's budget, in the unit of its kind.
        validation_gain: By how much the selection beats the selector's prior on the validation split.
        selection_seconds: How long selecting took, of which `decision_seconds` without measuring anything.
    """

    num_examples: int = _number("I")
    accuracy: float = _number("d")
    loss: float = _number("d")
    train_loss: float = _number("d")
    keep_ratio: float = _number("d")
    flops_ratio: float = _number("d")
    budget_kind: int = _number("B")
    budget_limit: float = _number("d")
    validation_gain: float = _number("f")
    training_seconds: float = _number("f")
    selection_seconds: float = _number("f")
    decision_seconds: float = _number("f")
    seconds: float = _number("f")


@dataclass(frozen=True, kw_only=True)
class EvaluateReport(_Report):
    """What a client tells of the encoder after the last round, on its test split."""

    num_examples: int = _number("I")
    accuracy: float = _number("d")
    loss: float = _number("d")


def pack_update(
    update: Update,
    layout: EncoderLayout,
    codec: Codec,
    *,
    generator: torch.Generator,
    max_bytes: int | None = None,
) -> bytes:
    """Pack an update; `unpack_update` of the result gives the values the server will see.

    Args:
        update: What is sent, `values` as they are.
        layout: The encoder.
        codec: How values are encoded.
        generator: The source of stochastic rounding.
        max_bytes: How long the blob may be, for a codec that can choose; see `update_bytes` for the others.
    """
    sections = {_indices_kind(update.selection): pack_bitmap(update.selection)}
    if update.report is not None:
        sections[_REPORT] = update.report.to_bytes()
    header = _UPDATE_HEADER.pack(update.base_version, update.step_weight, update.corrected)
    room = None
    if max_bytes is not None:
        spent = _HEADER.size + len(header) + _SECTION.size + sum(_SECTION.size + len(s) for s in sections.values())
        room = max_bytes - spent
    places = layout.places(update.selection)
    sections[_VALUES] = codec.encode(update.values, places, generator=generator, max_bytes=room)
    return _pack(_UPDATE, codec, update.server_round, layout, header, sections)


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
    header, codec, own, sections = _open(blob, _UPDATE, layout)
    base, step_weight, corrected = _UPDATE_HEADER.unpack(own)
    if (header.server_round, base) != (server_round, base_version):
        raise UpdateRejected(
            f"the update answers round {header.server_round} from version {base}, "
            f"expected round {server_round} from version {base_version}"
        )
    if not (math.isfinite(step_weight) and step_weight > 0):
        raise UpdateRejected(f"the step weight must be positive and finite, got {step_weight}")
    if corrected not in (0, 1):
        raise UpdateRejected(f"whether gradients were corrected must be 0 or 1, got {corrected}")
    selection = _take_selection(sections, layout)
    report = TrainReport.from_bytes(sections.pop(_REPORT)) if _REPORT in sections else None
    values = codec.decode(_take(sections, _VALUES), layout.places(selection))
    _check_finite(values)
    _check_empty(sections)
    return Update(server_round, base, selection, values, step_weight, bool(corrected), report)


def pack_download(download: Download, layout: EncoderLayout) -> bytes:
    """Pack what the server sends to a client."""
    sections: dict[int, bytes] = {}
    if download.selection is not None:
        sections[_indices_kind(download.selection)] = pack_bitmap(download.selection)
    if download.base is not None:
        sections[_BASE] = download.base.numpy().astype("<f4", copy=False).tobytes()
    if download.snapshot is not None:
        sections[_SNAPSHOT] = download.snapshot.numpy().astype("<i4", copy=False).tobytes()
    if download.values:
        lengths = b"".join(_LENGTH.pack(len(each)) for each in download.values[:-1])
        sections[_VALUES] = b"".join([bytes([len(download.values)]), lengths, *download.values])
    if download.control is not None:
        sections[_CONTROL] = download.control
    if download.derived is not None:
        derived = download.derived
        sections[_DERIVED] = _DERIVED_CONTROL.pack(derived.damping, derived.step_weight, derived.valid)
    header = _DOWNLOAD_HEADER.pack(download.base_version, download.version, download.acknowledged_round, download.check)
    return _pack(_DOWNLOAD, download.codec, download.server_round, layout, header, sections)


def unpack_download(blob: bytes, layout: EncoderLayout) -> Download:
    """Check what the server sends; what it encoded is checked when it is followed (`spatl.rounds.downlink`).

    Raises:
        UpdateRejected: The reason why the blob must not be used.
    """
    header, codec, own, sections = _open(blob, _DOWNLOAD, layout)
    base_version, version, acknowledged_round, check = _DOWNLOAD_HEADER.unpack(own)
    if base_version > version:
        raise UpdateRejected(f"the download leads from version {base_version} back to {version}")
    selection = None
    if sections.keys() & {_INDICES, _CLOSED_INDICES}:
        selection = _take_selection(sections, layout)
    num_values = layout.num_entries if selection is None else selection.num_entries(layout)
    base = snapshot = None
    if _BASE in sections:
        base = _take_numbers(sections, _BASE, "<f4", layout.num_entries).to(torch.float32)
        _check_finite(base)
    if _SNAPSHOT in sections:
        snapshot = _take_numbers(sections, _SNAPSHOT, "<i4", num_values).to(torch.int32)
    values = _split(sections.pop(_VALUES)) if _VALUES in sections else ()
    control = bytes(sections.pop(_CONTROL)) if _CONTROL in sections else None
    derived = None
    if _DERIVED in sections:
        derived = _derived_control(sections.pop(_DERIVED))
    _check_empty(sections)
    return Download(
        header.server_round, version, base_version, acknowledged_round, codec, check, values, snapshot, base, control,
        derived, selection,
    )  # fmt: skip


def _split(data: memoryview) -> tuple[bytes, ...]:
    """The encoded values of a download, each apart."""
    count = data[0] if len(data) else 0
    start = 1 + _LENGTH.size * (count - 1)
    if count == 0 or len(data) < start:
        raise UpdateRejected(f"{len(data)} bytes are no list of encoded values")
    ends = [start]
    for position in range(count - 1):
        ends.append(ends[-1] + _LENGTH.unpack_from(data, 1 + _LENGTH.size * position)[0])
    if ends[-1] > len(data):
        raise UpdateRejected("the encoded values run over the end of their section")
    return tuple(bytes(data[one:other]) for one, other in zip(ends, [*ends[1:], len(data)], strict=True))


def _take_numbers(sections: dict[int, memoryview], kind: int, dtype: str, number: int) -> Tensor:
    data = _take(sections, kind)
    if len(data) != 4 * number:
        raise UpdateRejected(f"expected {4 * number} bytes of {_SECTION_NAMES[kind]}, got {len(data)}")
    numbers = np.frombuffer(data, dtype=dtype)
    return torch.from_numpy(numbers.astype(numbers.dtype.newbyteorder("=")))


def _derived_control(data: memoryview) -> DerivedControl:
    if len(data) != _DERIVED_CONTROL.size:
        raise UpdateRejected(f"expected {_DERIVED_CONTROL.size} bytes that control follows from, got {len(data)}")
    damping, step_weight, valid = _DERIVED_CONTROL.unpack(data)
    if not (0 <= damping <= 1 and 0 <= step_weight < math.inf and valid in (0, 1)):
        raise UpdateRejected(f"control cannot follow from damping {damping} and step weight {step_weight}")
    return DerivedControl(damping, step_weight, bool(valid))


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
    """The length of a packed update with so many values of so many channels: the largest, where it varies."""
    bitmap = 0 if num_channels == layout.num_channels else (layout.num_channels + 7) // 8
    values = codec.num_bytes(num_values=num_values, num_channels=num_channels)
    overhead = _HEADER.size + _UPDATE_HEADER.size + 3 * _SECTION.size + TrainReport.num_bytes()
    return overhead + bitmap + values


def download_overhead(*, controls: bool) -> int:
    """The length of a download of one change without the change itself, for a client that missed nothing."""
    control = _SECTION.size + _DERIVED_CONTROL.size if controls else 0
    return _HEADER.size + _DOWNLOAD_HEADER.size + _SECTION.size + 1 + control


def section_bytes(blob: bytes) -> dict[str, int]:
    """Return the bytes of a blob's values, indices and control sections, by name; the rest is overhead.

    Raises:
        UpdateRejected: The blob is damaged.
    """
    _, _, sections = _open_sections(blob)
    lengths = dict.fromkeys(_COUNTED, 0)
    for kind, data in sections.items():
        if _SECTION_NAMES[kind] in lengths:
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
    fingerprint: bytes
    payload_bytes: int


_OWN_HEADERS = {_DOWNLOAD: _DOWNLOAD_HEADER, _UPDATE: _UPDATE_HEADER}


def _pack(
    kind: int, codec: Codec, server_round: int, layout: EncoderLayout, own_header: bytes, sections: Mapping[int, bytes]
) -> bytes:
    payload_bytes = sum(len(data) for data in sections.values())
    header = _HEADER.pack(
        MAGIC, VERSION, kind, codec.number, len(sections), server_round, layout.fingerprint, payload_bytes
    )
    table = [_SECTION.pack(section, len(data)) for section, data in sections.items()]
    return b"".join([header, own_header, *table, *sections.values()])


def _open(blob: bytes, kind: int, layout: EncoderLayout) -> tuple[_Header, Codec, memoryview, dict[int, memoryview]]:
    """Check the header against what was expected; return it, the kind's own header and views of the sections."""
    header, own_header, sections = _open_sections(blob)
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
    return header, codec, own_header, sections


def _open_sections(blob: bytes) -> tuple[_Header, memoryview, dict[int, memoryview]]:
    """Check that a blob is one, and whole; return its header, its kind's own and views of its sections by kind."""
    if len(blob) < _HEADER.size:
        raise UpdateRejected(f"the blob has {len(blob)} bytes, fewer than a header's {_HEADER.size}")
    header = _Header(*_HEADER.unpack_from(blob))
    if header.magic != MAGIC:
        raise UpdateRejected(f"not a SPATL blob: it starts with {header.magic!r}")
    if header.version != VERSION:
        raise UpdateRejected(f"blob format version {header.version}, expected {VERSION}")
    if header.kind not in _OWN_HEADERS:
        raise UpdateRejected(f"blob kind {header.kind}, expected one of {', '.join(map(str, _OWN_HEADERS))}")
    table = _HEADER.size + _OWN_HEADERS[header.kind].size
    start = table + header.num_sections * _SECTION.size
    if len(blob) != start + header.payload_bytes:
        raise UpdateRejected(f"the blob has {len(blob)} bytes, its header promises {start + header.payload_bytes}")
    sections: dict[int, memoryview] = {}
    for position in range(header.num_sections):
        kind, length = _SECTION.unpack_from(blob, table + position * _SECTION.size)
        if kind in sections or kind not in _SECTION_NAMES:
            raise UpdateRejected(f"section {kind} is unknown or repeated")
        if start + length > len(blob):
            raise UpdateRejected(f"section {kind} runs over the end of the blob")
        sections[kind] = memoryview(blob)[start : start + length]
        start += length
    if start != len(blob):
        raise UpdateRejected(f"{len(blob) - start} bytes belong to no section")
    return header, memoryview(blob)[_HEADER.size : table], sections


def _indices_kind(selection: Selection) -> int:
    return _CLOSED_INDICES if selection.closed else _INDICES


def _take_selection(sections: dict[int, memoryview], layout: EncoderLayout) -> Selection:
    closed = _CLOSED_INDICES in sections
    if closed and layout.readings is None:
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
    if not all_finite(values):
        raise UpdateRejected("the values contain NaN or infinity")
