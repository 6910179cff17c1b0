"""Download of a client: what leads it to the server's encoder and control variate, in one blob."""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection, pack_bitmap
from spatl.errors import UpdateRejected
from spatl.wire.blob import (
    BASE,
    CLOSED_INDICES,
    CONTROL,
    DERIVED,
    DOWNLOAD,
    INDICES,
    SECTION_NAMES,
    SNAPSHOT,
    STATISTICS,
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
from spatl.wire.codec import Codec
from spatl.wire.statistics import Statistics

_LINE_OF_VALUES = 1 + 5  # in the table: a length of 32 GiB at most
_LENGTH = struct.Struct("<I")
MOST_STEPS = 255
"""Changes that a download can list one by one."""
_CONTROL_STEP = struct.Struct("<ff")


@dataclass(frozen=True, eq=False)
class Model:
    """Model that a client works with in a round, once it has followed the server's changes.

    Attributes:
        server_round: The round it opens.
        version: The version of the encoder: how many times changes were sent out.
        encoder: float32 [N], x as the clients hold it; or what makes it anew whenever it is needed, so that it takes no
            memory while the client trains.
        control: float32 [P], c as the clients hold it; None where this client's gradients are not corrected.
        selection: The channels that travel and are trained, where all clients have the same; x is zero elsewhere.
        statistics: BatchNorm statistics of all clients' data under this encoder, where they were aggregated.
    """

    server_round: int
    version: int
    encoder: Tensor | Callable[[], Tensor]
    control: Tensor | None
    selection: Selection | None = None
    statistics: Statistics | None = None

    def start(self) -> Tensor:
        """float32 [N], x, where local training starts."""
        return self.encoder if isinstance(self.encoder, Tensor) else self.encoder()


@dataclass(frozen=True)
class DerivedControl:
    """Numbers that the change of c follows from, beside the change of the encoder (`rounds.control.followed_control`).

    Attributes:
        damping: rho times the share of the clients' weight that stood behind the last change, in [0, 1].
        step_weight: The clients' mean step weight; 0 while there is nothing to follow from.
        valid: Whether this client holds c; one that missed more changes than it is told of does not, for a while.
        missed: Damping and step weight of the changes before, the oldest first, for a client that missed them: they
            come one by one, so that it derives c from each.
    """

    damping: float
    step_weight: float
    valid: bool
    missed: tuple[tuple[float, float], ...] = ()

    @property
    def steps(self) -> tuple[tuple[float, float], ...]:
        """Damping and step weight of each change that c follows from, the oldest first."""
        return (*self.missed, (self.damping, self.step_weight))


@dataclass(frozen=True, eq=False)
class Download:
    """Download of one client: the encoder, or what leads to it from a version that the client holds.

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
        statistics: BatchNorm statistics of all clients' data under the encoder it leads to; None in a round.
    """

    server_round: int
    version: int
    base_version: int
    acknowledged_round: int
    codec: Codec
    check: bytes
    values: tuple[bytes | memoryview, ...]
    snapshot: Tensor | None = None
    base: Tensor | None = None
    control: bytes | None = None
    derived: DerivedControl | None = None
    selection: Selection | None = None
    statistics: Statistics | None = None


def pack_download(download: Download, layout: EncoderLayout) -> bytes:
    """Pack what the server sends to a client."""
    sections: dict[int, bytes] = {}
    if download.selection is not None:
        sections[indices_kind(download.selection)] = pack_bitmap(download.selection)
    if download.base is not None:
        sections[BASE] = download.base.numpy().astype("<f4", copy=False).tobytes()
    if download.snapshot is not None:
        sections[SNAPSHOT] = download.snapshot.numpy().astype("<i4", copy=False).tobytes()
    if download.values:
        lengths = b"".join(_LENGTH.pack(len(each)) for each in download.values[:-1])
        sections[VALUES] = b"".join([bytes([len(download.values)]), lengths, *download.values])
    if download.control is not None:
        sections[CONTROL] = download.control
    if download.derived is not None:
        steps = (_CONTROL_STEP.pack(*each) for each in download.derived.steps)
        sections[DERIVED] = b"".join([*steps, bytes([download.derived.valid])])
    if download.statistics is not None:
        sections[STATISTICS] = download.statistics.to_bytes()
    return pack_blob(
        DOWNLOAD, download.codec, download.server_round, layout, sections,
        download.base_version, download.version, download.acknowledged_round, rest=download.check,
    )  # fmt: skip


def unpack_download(blob: bytes, layout: EncoderLayout, codec: Codec, *, num_statistics: int = 0) -> Download:
    """Check what the server sends; what it encoded is checked when it is followed (`spatl.rounds.downlink`).

    Args:
        blob: The received bytes.
        layout: The encoder it must fit.
        codec: The codec it must be written with.
        num_statistics: The number of channels whose statistics it may bring.

    Raises:
        UpdateRejected: The reason why the blob must not be used.
    """
    header, sections = open_blob(blob, DOWNLOAD, layout, codec)
    base_version, version, acknowledged_round = header.numbers
    if base_version > version:
        raise UpdateRejected(f"the download leads from version {base_version} back to {version}")
    selection = None
    if sections.keys() & {INDICES, CLOSED_INDICES}:
        selection = take_selection(sections, layout)
    num_values = layout.num_entries if selection is None else selection.num_entries(layout)
    base = snapshot = None
    if BASE in sections:
        base = _take_numbers(sections, BASE, "<f4", layout.num_entries).to(torch.float32)
        check_finite(base)
    if SNAPSHOT in sections:
        snapshot = _take_numbers(sections, SNAPSHOT, "<i4", num_values).to(torch.int32)
    values = _split(sections.pop(VALUES)) if VALUES in sections else ()
    control = bytes(sections.pop(CONTROL)) if CONTROL in sections else None
    derived = None
    if DERIVED in sections:
        derived = _derived_control(sections.pop(DERIVED))
        if derived.missed and (len(values) != len(derived.steps) or version - base_version != len(values)):
            raise UpdateRejected(
                f"control follows from {len(derived.steps)} changes, the download leads from version {base_version} to "
                f"{version} by {len(values)}"
            )
    statistics = None
    if STATISTICS in sections and num_statistics:
        statistics = Statistics.from_bytes(sections.pop(STATISTICS), num_statistics)
    check_all_read(sections)
    return Download(
        header.server_round, version, base_version, acknowledged_round, codec, bytes(header.rest), values, snapshot,
        base, control, derived, selection, statistics,
    )  # fmt: skip


def _split(data: memoryview) -> tuple[memoryview, ...]:
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
    return tuple(data[one:other] for one, other in zip(ends, [*ends[1:], len(data)], strict=True))


def _take_numbers(sections: dict[int, memoryview], kind: int, dtype: str, number: int) -> Tensor:
    data = take_section(sections, kind)
    if len(data) != 4 * number:
        raise UpdateRejected(f"expected {4 * number} bytes of {SECTION_NAMES[kind]}, got {len(data)}")
    numbers = np.frombuffer(data, dtype=dtype)
    return torch.from_numpy(numbers.astype(numbers.dtype.newbyteorder("=")))


def _derived_control(data: memoryview) -> DerivedControl:
    number, size = _CONTROL_STEP.size, len(data)
    if not number < size <= MOST_STEPS * number + 1 or size % number != 1:
        raise UpdateRejected(f"expected {number} bytes a change that control follows from and one more, got {size}")
    steps, valid = tuple(_CONTROL_STEP.iter_unpack(data[:-1])), data[-1]
    for damping, step_weight in steps:
        if not (0 <= damping <= 1 and 0 <= step_weight < math.inf and valid in (0, 1)):
            raise UpdateRejected(f"control cannot follow from damping {damping} and step weight {step_weight}")
    if len(steps) > 1 and not valid:
        raise UpdateRejected("control follows from changes that were missed, and is not to be used")
    damping, step_weight = steps[-1]
    return DerivedControl(damping, step_weight, bool(valid), steps[:-1])


def download_overhead(*, controls: bool, selection: Selection | None = None) -> int:
    """The length of a download of one change without the change itself, for a client that missed nothing."""
    control = [_CONTROL_STEP.size + 1] if controls else []
    indices = [] if selection is None else [len(pack_bitmap(selection))]
    return overhead_bytes(DOWNLOAD, *control, *indices) + _LINE_OF_VALUES + 1
