"""A download as bytes: what goes in comes out, and nothing damaged comes through."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection
from spatl.errors import UpdateRejected
from spatl.wire.blob import section_bytes
from spatl.wire.codecs import CODECS
from spatl.wire.download import DerivedControl, Download, download_overhead, pack_download, unpack_download
from spatl.wire.varints import varint
from tests.support.layouts import split_labels
from tests.support.messages import HEADER_CASES, LAYOUT, download_of, forged, written

SOME = Selection(torch.arange(LAYOUT.num_channels) % 2 == 0)
READS = torch.arange(LAYOUT.num_entries) % (LAYOUT.num_channels + 1) - 1
CLOSED = replace(LAYOUT, readings=split_labels(LAYOUT, READS))


def unpack(blob: bytes, layout: EncoderLayout) -> Download:
    return unpack_download(blob, layout, CODECS["int8"])


def whole_download() -> Download:
    """One with every section that can stand beside the others, in the order of the table."""
    return download_of(
        selection=SOME,
        base=torch.randn(LAYOUT.num_entries),
        snapshot=torch.arange(len(SOME.entries(LAYOUT)), dtype=torch.int32) - 5,
        values=(b"one", b"", b"three"),
        control=b"control",
        derived=DerivedControl(0.5, 0.25, True),
    )


def assert_same(seen: Download, sent: Download) -> None:
    for name, value in vars(sent).items():
        other = getattr(seen, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(other, value)
            assert other.dtype == value.dtype
        elif isinstance(value, Selection):
            assert torch.equal(other.mask, value.mask)
            assert other.closed == value.closed
        else:
            assert other == value, name


@pytest.mark.parametrize("closed", [None, False, True])
@pytest.mark.parametrize("values", [(), (b"",), (b"one",), (b"one", b"", b"three"), tuple([b"x"] * 255)])
def test_a_download_comes_through_with_every_combination_of_sections(closed, values):
    layout = CLOSED if closed else LAYOUT
    selection = None if closed is None else Selection(SOME.mask, closed)
    num_values = layout.num_entries if selection is None else len(selection.entries(layout))
    choices = {
        "snapshot": (None, torch.full((num_values,), -(2**31), dtype=torch.int32)),
        "base": (None, torch.randn(layout.num_entries)),
        "control": (None, b"", b"control"),
        "derived": (None, DerivedControl(0.5, 0.25, True), DerivedControl(0.0, 0.0, False)),
    }
    for chosen in product(*choices.values()):
        sections = dict(zip(choices, chosen, strict=True))
        sent = download_of(values=values, selection=selection, **sections)
        blob = pack_download(sent, layout)
        assert_same(unpack(blob, layout), sent)
        assert section_bytes(blob)["control"] == len(sections["control"] or b"") + (9 if sections["derived"] else 0)


@given(numbers=st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4))
def test_rounds_and_versions_of_32_bits_come_through_or_are_refused(numbers):
    server_round, one, other, acknowledged_round = numbers
    sent = replace(
        download_of(), server_round=server_round, base_version=min(one, other), version=max(one, other),
        acknowledged_round=acknowledged_round,
    )  # fmt: skip
    assert_same(unpack(pack_download(sent, LAYOUT), LAYOUT), sent)
    if one != other:
        with pytest.raises(UpdateRejected, match="back to"):
            unpack(pack_download(replace(sent, base_version=sent.version, version=sent.base_version), LAYOUT), LAYOUT)


@pytest.mark.parametrize(
    ("offset", "layout", "value", "reason"),
    [
        *HEADER_CASES,
        (13, "B", 3, "from version 3 back to 2"),
        (14, "B", 0, "from version 1 back to 0"),
        (24, "B", 0, "section 0 is unknown"),
        (24, "B", 4, "gone for good"),
        (26, "B", 16, "section 16 is unknown"),
        (26, "B", 5, "unexpected report section"),
        (25, "B", 1, "promises"),
        (25, "B", 0x7F, "promises"),
    ],
)
def test_every_header_field_of_a_download_is_checked(offset, layout, value, reason):
    """The header is 12 bytes, round and versions a byte each, the check 8, and the table of sections follows at 24."""
    blob = pack_download(whole_download(), LAYOUT)
    with pytest.raises(UpdateRejected, match=reason):
        unpack(forged(blob, written(offset, layout, value)), LAYOUT)


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"base": torch.zeros(LAYOUT.num_entries - 1)}, "bytes of values, got"),
        ({"base": torch.full((LAYOUT.num_entries,), float("nan"))}, "NaN or infinity"),
        ({"base": torch.full((LAYOUT.num_entries,), float("inf"))}, "NaN or infinity"),
        ({"snapshot": torch.zeros(LAYOUT.num_entries + 1, dtype=torch.int32)}, "bytes of values, got"),
        ({"snapshot": torch.zeros(LAYOUT.num_entries, dtype=torch.int32), "selection": SOME}, "bytes of"),
        ({"derived": DerivedControl(1.5, 1.0, True)}, "damping 1.5"),
        ({"derived": DerivedControl(-0.5, 1.0, True)}, "damping -0.5"),
        ({"derived": DerivedControl(float("nan"), 1.0, True)}, "damping nan"),
        ({"derived": DerivedControl(0.5, float("inf"), True)}, "step weight inf"),
        ({"derived": DerivedControl(0.5, float("nan"), True)}, "step weight nan"),
        ({"derived": DerivedControl(0.5, -1.0, True)}, "step weight -1"),
        ({"derived": DerivedControl(0.5, 1.0, 2)}, "control cannot follow"),
    ],
)
def test_every_section_of_a_download_is_checked(sections, reason):
    with pytest.raises(UpdateRejected, match=reason):
        unpack(pack_download(download_of(**sections), LAYOUT), LAYOUT)


def with_section(kind: int, data: bytes) -> bytes:
    """A download of one section with any bytes."""
    row = bytes([kind]) + varint(len(data)) + data
    return forged(pack_download(download_of(), LAYOUT), lambda body: written(7, "B", 1)(body) + row)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes are no list"),
        (b"\0", "1 bytes are no list"),
        (b"\0one", "4 bytes are no list"),
        (b"\2\0\0\0", "4 bytes are no list"),
        (b"\2\4\0\0\0one", "over the end"),
        (b"\2\xff\xff\xff\xffone", "over the end"),
        (b"\xff" + bytes(200), "no list"),
    ],
)
def test_a_list_of_values_that_is_none_is_refused(data, reason):
    with pytest.raises(UpdateRejected, match=reason):
        unpack(with_section(1, data), LAYOUT)


@pytest.mark.parametrize("length", [0, 1, 8, 10, 16])
def test_numbers_that_control_follows_from_are_eight_bytes_a_change_and_one(length):
    with pytest.raises(UpdateRejected, match=f"8 bytes a change that control follows from and one more, got {length}"):
        unpack(with_section(8, bytes(length)), LAYOUT)


@pytest.mark.slow
def test_a_truncated_extended_or_forged_download_is_refused_or_well_formed():
    sent = replace(whole_download(), values=(b"one",))
    blob = pack_download(sent, LAYOUT)
    for length in range(len(blob) - 8):
        with pytest.raises(UpdateRejected):
            unpack(forged(blob, lambda body, length=length: body[:length]), LAYOUT)
    with pytest.raises(UpdateRejected):
        unpack(forged(blob, lambda body: body + b"\0"), LAYOUT)
    for position, mask in product(range(len(blob) - 8), (1, 0x80, 0xFF)):
        try:
            seen = unpack(forged(blob, written(position, "B", blob[position] ^ mask)), LAYOUT)
        except UpdateRejected:
            continue
        assert bool(torch.isfinite(seen.base).all())
        assert len(seen.snapshot) == len(seen.selection.entries(LAYOUT))
        assert 0 <= seen.derived.damping <= 1


@pytest.mark.parametrize("selection", [None, SOME], ids=["of all channels", "of some"])
@pytest.mark.parametrize("controls", [False, True])
def test_what_a_download_takes_beside_its_change_is_foretold(controls, selection):
    derived = DerivedControl(0.5, 0.25, True) if controls else None
    sent, most = download_of(values=(b"a change",), derived=derived, selection=selection), 2**32 - 1
    late = replace(sent, server_round=most, base_version=most, version=most, acknowledged_round=most)
    foretold = download_overhead(controls=controls, selection=selection) + len(b"a change")
    assert len(pack_download(sent, LAYOUT)) < foretold
    assert len(pack_download(late, LAYOUT)) == foretold - 4  # of five bytes for the length of the values one is used
