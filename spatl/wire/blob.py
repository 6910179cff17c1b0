"""Blob of a message: a header, a table of sections, the sections and a digest, checked before anything of it is used.

All of it is little-endian; `docs/wire-format.md` has every byte. All kinds of blob begin alike: magic, version of the
format, kind, codec, the layout's fingerprint (so that both sides mean the same entries by the same positions), round. A
download (the server's) goes on with the version of the encoder it leads to and the one it starts from; an update (a
client's) with the version it was computed from. Numbers take as few bytes as they need (`spatl.wire.varints`).

The last 8 bytes are a digest of all before them. Checksums of TCP and of disks let one alteration in some tens of
thousands pass, and TLS ends at a proxy or is switched off; 2^-64 lets none pass in the life of any federation. It is no
signature: who alters a message on purpose makes it anew, and is kept out by TLS and by the keys of the clients.
"""

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection, unpack_bitmap
from spatl.channels.vectors import all_finite
from spatl.errors import UpdateRejected
from spatl.wire.codec import Codec
from spatl.wire.varints import read_varint, varint

CLIENT_REFUSED: Final = 100  # error codes of a client's reply, beyond Flower's own

CLIENT_DIVERGED: Final = 101

CLIENT_LOST: Final = 102
"""The client does not hold what the server's changes start from."""

CLIENT_FAILED: Final = 103
"""An exception of the model's, or a bug: its reason goes on with a traceback."""
CLIENT_MACHINE: Final = 104
"""Code of an error reply of a simulation's client whose machine, which is the server's, refused something: its disk is
full. The run then ends, to be gone on with; of a device it would be one client's failure."""
CLIENT_BUSY: Final = 105
"""Another process of the client's is at work on its state: the answer will come if it is asked for again."""
CLIENT_NOT_NOW: Final = 106
"""Code of an error reply of a device whose owner lets it do nothing at this time; it is no failure of the client."""
CLIENT_FORGOT: Final = 107
"""The client does not have the control variate that the server's contains: its state was lost, or is an older one."""
CLIENT_UNREGISTERED: Final = 108
"""The device keeps nothing of its registration: it does nothing before it is asked for it again."""

RECORD, BLOB = "spatl", "blob"
"""Where a message has its blob: a bytes value of a config record, which costs 183 bytes and two objects around it; an
array would cost 485 and four."""

RECORD_BYTES: Final = 190
"""What Flower's records add to a blob, at most."""

MAGIC: Final = b"SPTL"
VERSION: Final = 5
"""The version of the format."""
CHECK_BYTES: Final = 8
"""The length of the check value by which a client knows that it arrived at the server's encoder."""

DIGEST_BYTES: Final = 8
"""The length of the digest that a blob ends with, BLAKE2b of all bytes before it."""

_LONGEST_SEEN: Final = 2**22  # of a large network's messages, memory is dearer than a second look
_SEEN_BYTES: Final = 2**25
_HEADER: Final = struct.Struct("<4sBBBB4s")
"""What every blob begins with, before the round."""
_FINGERPRINT_BYTES: Final = 4  # of 8: registration has compared all of them, and no digest is right by accident
_LARGEST_NUMBER: Final = 2**32 - 1
"""Of rounds and versions."""
_NUMBER_BYTES: Final = 5  # the most of such a number

DOWNLOAD, UPDATE, GATHERED, FINDINGS = 1, 2, 3, 4
"""The kinds of blob."""
VALUES, INDICES, CONTROL, CLOSED_INDICES, REPORT, BASE, SNAPSHOT, DERIVED, STATISTICS, ARRIVAL = range(1, 11)
MOMENTS, CLASSES, CLASS_PROFILES, PROTOTYPES, MEASURES = range(11, 16)
"""The kinds of section."""
SECTION_NAMES = {
    VALUES: "values",
    INDICES: "indices",
    CONTROL: "control",
    CLOSED_INDICES: "indices",
    REPORT: "report",
    BASE: "values",
    SNAPSHOT: "values",
    DERIVED: "control",
    STATISTICS: "values",
    ARRIVAL: "values",
    MOMENTS: "values",
    CLASSES: "values",
    CLASS_PROFILES: "values",
    PROTOTYPES: "values",
    MEASURES: "report",
}

_COUNTED: Final = ("values", "indices", "control")  # by name in the ledger; the rest is overhead


def section_bytes(blob: bytes) -> dict[str, int]:
    """Return the bytes of a blob's values, indices and control sections, by name; the rest is overhead.

    Raises:
        UpdateRejected: The blob is damaged.
    """
    _, sections = open_sections(blob)
    lengths = dict.fromkeys(_COUNTED, 0)
    for kind, data in sections.items():
        if SECTION_NAMES[kind] in lengths:
            lengths[SECTION_NAMES[kind]] += len(data)
    return lengths


@dataclass(frozen=True)
class Header:
    """Header of a blob: what all kinds have, and the kind's own.

    Attributes:
        kind: The kind of blob.
        codec: The number of the codec that its values are written with.
        fingerprint: The first bytes of the layout's.
        server_round: The round.
        numbers: Whole numbers of the kind's own.
        rest: Bytes of the kind's own behind them.
    """

    kind: int
    codec: int
    fingerprint: bytes
    server_round: int
    numbers: tuple[int, ...]
    rest: memoryview


@dataclass(frozen=True)
class _OwnHeader:
    """What a kind of blob has of its own in its header: so many whole numbers, and so many bytes behind them."""

    num_numbers: int
    num_bytes: int = 0


_OWN_HEADERS: Final = {
    DOWNLOAD: _OwnHeader(3, CHECK_BYTES), UPDATE: _OwnHeader(1, 8), GATHERED: _OwnHeader(1), FINDINGS: _OwnHeader(1),
}  # fmt: skip


def pack_blob(
    kind: int,
    codec: Codec,
    server_round: int,
    layout: EncoderLayout,
    sections: Mapping[int, bytes],
    *numbers: int,
    rest: bytes = b"",
) -> bytes:
    """Pack sections, by kind of section, behind the common header and the kind's own numbers and bytes."""
    header = _HEADER.pack(MAGIC, VERSION, kind, codec.number, len(sections), layout.fingerprint[:_FINGERPRINT_BYTES])
    table = [bytes([section]) + varint(len(data)) for section, data in sections.items()]
    return with_digest(header, *map(varint, (server_round, *numbers)), rest, *table, *sections.values())


def overhead_bytes(kind: int, *lengths: int) -> int:
    """Return the most bytes that a blob of a kind takes beside sections of such lengths, which are counted as well."""
    own = _OWN_HEADERS[kind]
    table = sum(section_bytes_of(length) for length in lengths)
    return _HEADER.size + _NUMBER_BYTES * (1 + own.num_numbers) + own.num_bytes + table + DIGEST_BYTES


def section_bytes_of(length: int) -> int:
    """Return how many bytes a section of a length takes with its line in the table."""
    return 1 + len(varint(max(length, 0))) + length


def open_blob(blob: bytes, kind: int, layout: EncoderLayout, codec: Codec) -> tuple[Header, dict[int, memoryview]]:
    """Check the header against what was expected; return it and views of the sections."""
    header, sections = open_sections(blob)
    if header.kind != kind:
        raise UpdateRejected(f"blob kind {header.kind}, expected {kind}")
    if header.fingerprint != layout.fingerprint[:_FINGERPRINT_BYTES]:
        raise UpdateRejected(
            f"the model's fingerprint begins with {header.fingerprint.hex()}, expected {layout.fingerprint.hex()}: "
            "the two sides were built from different configs"
        )
    if header.codec != codec.number:
        raise UpdateRejected(
            f"the values are written with codec number {header.codec}, expected {codec.number} ({codec.name})"
        )
    return header, sections


def open_gathered(
    blob: bytes, kind: int, layout: EncoderLayout, codec: Codec, *, server_round: int, version: int, what: str
) -> dict[int, memoryview]:
    """Check the headers of what a client tells of one version of the encoder; return views of the sections.

    Raises:
        UpdateRejected: The blob is damaged, or about another round or version; `what` says what of.
    """
    header, sections = open_blob(blob, kind, layout, codec)
    (found,) = header.numbers
    if (header.server_round, found) != (server_round, version):
        raise UpdateRejected(
            f"the {what} are of round {header.server_round} and version {found}, "
            f"expected round {server_round} and version {version}"
        )
    return sections


def open_sections(blob: bytes) -> tuple[Header, dict[int, memoryview]]:
    """Check that a blob is one, and whole; return its header and views of its sections by kind."""
    if len(blob) < _HEADER.size + DIGEST_BYTES:
        raise UpdateRejected(
            f"the blob has {len(blob)} bytes, fewer than a header's {_HEADER.size} and a digest's {DIGEST_BYTES}"
        )
    magic, version, kind, codec, num_sections, fingerprint = _HEADER.unpack_from(blob)
    if magic != MAGIC:
        raise UpdateRejected(f"not a SPATL blob: it starts with {magic!r}")
    if version != VERSION:
        raise UpdateRejected(f"blob format version {version}, expected {VERSION}")
    body = without_digest(blob)
    if kind not in _OWN_HEADERS:
        raise UpdateRejected(f"blob kind {kind}, expected one of {', '.join(map(str, _OWN_HEADERS))}")
    own, place, numbers = _OWN_HEADERS[kind], _HEADER.size, []
    for _ in range(1 + own.num_numbers):
        number, place = read_varint(body, place, most=_LARGEST_NUMBER)
        numbers.append(number)
    rest = body[place : place + own.num_bytes]
    sections = _sections(body, place + own.num_bytes, num_sections)
    return Header(kind, codec, fingerprint, numbers[0], tuple(numbers[1:]), rest), sections


def _sections(body: memoryview, place: int, num_sections: int) -> dict[int, memoryview]:
    """Views of sections, by kind, whose table begins at a place of a blob and which fill the rest of it."""
    lengths: dict[int, int] = {}
    for _ in range(num_sections):
        if place >= len(body):
            raise UpdateRejected("the table of sections runs over the end of the blob")
        kind = body[place]
        if kind in lengths or kind not in SECTION_NAMES:
            raise UpdateRejected(f"section {kind} is unknown or repeated")
        lengths[kind], place = read_varint(body, place + 1)
    promised = place + sum(lengths.values())
    if promised != len(body):
        raise UpdateRejected(
            f"the blob has {len(body) + DIGEST_BYTES} bytes, its table promises {promised + DIGEST_BYTES}"
        )
    sections: dict[int, memoryview] = {}
    for kind, length in lengths.items():
        sections[kind] = body[place : place + length]
        place += length
    return sections


def with_digest(*parts: bytes | memoryview) -> bytes:
    """Return bytes, joined, and a digest of them all: how whatever travels ends."""
    whole = b"".join([*parts, digest_of(*parts)])
    _SEEN.add(whole)
    return whole


def without_digest(data: bytes | memoryview) -> memoryview:
    """Return a view of what `with_digest` was given.

    Raises:
        UpdateRejected: Something of it was altered on its way.
    """
    body = memoryview(data)[:-DIGEST_BYTES]
    if not isinstance(data, bytes):
        check_digest(bytes(data[-DIGEST_BYTES:]), body)
    elif data not in _SEEN:
        check_digest(data[-DIGEST_BYTES:], body)
        _SEEN.add(data)
    return body


class _Seen:
    """Objects of bytes whose digest this process has made or checked.

    A message is opened by its sender's ledger, its receiver and the receiver's ledger; where they are one process it is
    one object, which nothing can alter. Equal bytes in another object are not in here: they came by another way.
    """

    def __init__(self) -> None:
        self._whole = OrderedDict[int, bytes]()  # by their addresses, which stay theirs while they are kept
        self._num_bytes = 0

    def __contains__(self, data: bytes) -> bool:
        return id(data) in self._whole

    def add(self, data: bytes) -> None:
        """Remember bytes, and forget the first ones where they are too many."""
        if len(data) > _LONGEST_SEEN or id(data) in self._whole:
            return
        self._whole[id(data)] = data
        self._num_bytes += len(data)
        while self._num_bytes > _SEEN_BYTES:
            self._num_bytes -= len(self._whole.popitem(last=False)[1])


_SEEN: Final = _Seen()


def digest_of(*parts: bytes | memoryview) -> bytes:
    """Return the digest of bytes, joined."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        digest.update(part)
    return digest.digest()


def check_digest(digest: object, *parts: bytes | memoryview) -> None:
    """Raise unless bytes, joined, have the digest that came with them.

    Raises:
        UpdateRejected: They have another, or none came.
    """
    if digest != (found := digest_of(*parts)):
        told = digest.hex() if isinstance(digest, bytes) and len(digest) == DIGEST_BYTES else "missing"
        raise UpdateRejected(f"it was altered on its way: its digest is {told}, that of its bytes is {found.hex()}")


def indices_kind(selection: Selection) -> int:
    """The kind of section that holds a selection's bitmap."""
    return CLOSED_INDICES if selection.closed else INDICES


def take_selection(sections: dict[int, memoryview], layout: EncoderLayout) -> Selection:
    """Take the selection out of the sections.

    Raises:
        UpdateRejected: There is none, or it is not of this layout.
    """
    closed = CLOSED_INDICES in sections
    if closed and layout.readings is None:
        raise UpdateRejected("the blob's channels are gone for good, which this encoder does not know")
    bitmap = take_section(sections, CLOSED_INDICES if closed else INDICES)
    return unpack_bitmap(bitmap, layout.num_channels, closed=closed)


def take_section(sections: dict[int, memoryview], kind: int) -> memoryview:
    """Take a section out of the others.

    Raises:
        UpdateRejected: It is not there.
    """
    if kind not in sections:
        raise UpdateRejected(f"the blob has no {SECTION_NAMES[kind]} section")
    return sections.pop(kind)


def check_all_read(sections: Mapping[int, memoryview]) -> None:
    """Raise unless every section was taken.

    Raises:
        UpdateRejected: One was not.
    """
    if sections:
        raise UpdateRejected(f"unexpected {SECTION_NAMES[next(iter(sections))]} section")


def check_finite(values: Tensor) -> None:
    """Raise unless all values are finite.

    Raises:
        UpdateRejected: One is not.
    """
    if not all_finite(values):
        raise UpdateRejected("the values contain NaN or infinity")
