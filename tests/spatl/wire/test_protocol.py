"""The blob: what goes in comes out, and nothing damaged comes through."""

import re
import struct
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spatl.channels.layout import ChannelGroup, EncoderLayout, Labels
from spatl.channels.selection import Selection, pack_bitmap, unpack_bitmap
from spatl.errors import UpdateRejected
from spatl.wire.blob import section_bytes
from spatl.wire.codecs import CODECS
from spatl.wire.download import DerivedControl, Download, download_overhead, pack_download, unpack_download
from spatl.wire.reports import EvaluateReport, TrainReport
from spatl.wire.update import Update, pack_update, unpack_update, update_bytes
from tests.support.layouts import interleaved_layout, make_update, split_labels

LAYOUT = interleaved_layout([(1, 3), (7, 4), (5, 2)], statistics=3)
FLOAT32 = CODECS["float32"]
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


def unpack(blob: bytes) -> Update:
    return unpack_update(blob, LAYOUT, server_round=1, base_version=0)


@given(mask=masks, step_weight=st.floats(1e-6, 1e6))
@pytest.mark.parametrize("report", [None, REPORT])
def test_unpacking_gives_back_what_was_packed(mask, step_weight, report):
    blob, update = packed(mask, step_weight=step_weight, report=report)
    seen = unpack(blob)
    assert torch.equal(seen.selection.mask, update.selection.mask)
    assert torch.equal(seen.values, update.values)
    assert (seen.server_round, seen.base_version, seen.step_weight) == (1, 0, step_weight)
    assert (seen.corrected, seen.report) == (True, report)


@given(mask=masks)
def test_the_length_is_foretold_and_an_unselected_channel_costs_one_bit_at_most(mask):
    blob, update = packed(mask)
    kept = int(update.selection.mask.sum())
    assert len(blob) == update_bytes(LAYOUT, FLOAT32, num_values=len(update.values), num_channels=kept)
    sizes = section_bytes(blob)
    assert sizes["values"] == 4 * len(update.values)
    assert sizes["indices"] == (0 if kept == LAYOUT.num_channels else -(-LAYOUT.num_channels // 8))
    assert sizes["control"] == 0


@given(mask=masks)
def test_a_bitmap_round_trips(mask):
    selection = Selection(torch.tensor(mask))
    assert torch.equal(unpack_bitmap(pack_bitmap(selection), len(mask)).mask, selection.mask)


@given(mask=masks, data=st.data())
def test_a_truncated_or_extended_blob_is_refused(mask, data):
    blob, _ = packed(mask)
    length = data.draw(st.integers(0, len(blob) - 1))
    with pytest.raises(UpdateRejected):
        unpack(blob[:length])
    with pytest.raises(UpdateRejected):
        unpack(blob + b"\0")


@given(noise=st.binary(max_size=200))
def test_noise_is_refused(noise):
    with pytest.raises(UpdateRejected):
        unpack(noise)
    with pytest.raises(UpdateRejected):
        unpack(packed([True] * LAYOUT.num_channels)[0][:4] + noise)


@given(mask=masks, data=st.data())
def test_a_changed_byte_is_refused_or_changes_a_value_only(mask, data):
    blob, update = packed(mask)
    position = data.draw(st.integers(0, len(blob) - 1))
    changed = bytearray(blob)
    changed[position] ^= data.draw(st.integers(1, 255))
    try:
        seen = unpack(bytes(changed))
    except UpdateRejected:
        return
    assert bool(torch.isfinite(seen.values).all())
    assert len(seen.values) == len(seen.selection.entries(LAYOUT)) == len(update.values)


HEADER_CASES = [
    (0, "4s", b"EVIL", "not a SPATL blob"),
    (4, "B", 1, "format version 1, expected 3"),
    (4, "B", 99, "format version 99"),
    (5, "B", 0, "kind 0"),
    (6, "B", 200, "codec number 200"),
    (7, "B", 255, "promises"),
    (12, "8s", b"otherone", "fingerprint"),
    (20, "Q", 2**63, "promises"),
    (20, "Q", 0, "promises"),
]
"""What both kinds of blob begin with: offset, form, a wrong value, and why it is refused."""


@pytest.mark.parametrize(
    ("offset", "layout", "value", "reason"),
    [
        *HEADER_CASES,
        (7, "B", 2, "promises"),
        (8, "I", 7, "answers round 7"),
        (8, "I", 2**32 - 1, "answers round 4294967295"),
        (28, "I", 5, "from version 5"),
        (28, "I", 2**32 - 1, "from version 4294967295"),
        (32, "d", float("nan"), "step weight"),
        (32, "d", float("inf"), "step weight"),
        (32, "d", 0.0, "step weight"),
        (32, "d", -1.0, "step weight"),
        (40, "B", 2, "corrected must be 0 or 1, got 2"),
        (41, "B", 0, "section 0 is unknown"),
        (41, "B", 9, "section 9 is unknown"),
        (41, "B", 1, "section 1 is unknown or repeated"),
        (41, "B", 3, "no indices section"),
        (41, "B", 4, "gone for good"),
        (50, "B", 7, "unexpected values section"),
        (59, "B", 8, "no values section"),
        (42, "Q", 2**64 - 1, "runs over the end"),
        (51, "Q", 1, "belong to no section"),
        (60, "Q", 1, "belong to no section"),
        (60, "Q", 2**40, "runs over the end"),
        (69, "B", 0, "bytes of float32 values"),
        (69, "B", 0x35, "beyond the last"),
    ],
)
def test_every_header_field_and_section_of_an_update_is_checked(offset, layout, value, reason):
    blob = bytearray(packed([True, False] * (LAYOUT.num_channels // 2) + [True])[0])
    struct.pack_into("<" + layout, blob, offset, value)
    with pytest.raises(UpdateRejected, match=reason):
        unpack(bytes(blob))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(value):
    difference = torch.zeros(LAYOUT.num_entries)
    difference[5] = value
    blob = pack_update(
        make_update(LAYOUT, [True] * LAYOUT.num_channels, difference), LAYOUT, FLOAT32, generator=GENERATOR
    )
    with pytest.raises(UpdateRejected, match="NaN or infinity"):
        unpack(blob)


def test_neither_kind_of_blob_is_taken_for_the_other():
    with pytest.raises(UpdateRejected, match="kind 2, expected 1"):
        unpack_download(packed([True] * LAYOUT.num_channels)[0], LAYOUT)
    with pytest.raises(UpdateRejected, match="kind 1, expected 2"):
        unpack(pack_download(download_of(), LAYOUT))


def documented_blob() -> bytes:
    """The bytes of the example in docs/wire-format.md; every line begins where the one before ended."""
    page = (Path(__file__).parents[3] / "docs" / "wire-format.md").read_text()
    blob = b""
    for line in page.split("```hexdump\n")[1].split("```")[0].splitlines():
        offset, digits, _ = re.fullmatch(r" *(\d+)  ((?:[0-9a-f]{2} )+) +(\S.*)", line).groups()
        assert int(offset) == len(blob)
        blob += bytes.fromhex(digits)
    return blob


def test_the_documented_example_is_what_is_packed():
    layout = EncoderLayout(
        {"weight": torch.Size([3, 2]), "bias": torch.Size([3])}, 9,
        (Labels(torch.arange(3), 2), Labels(torch.arange(3))), (ChannelGroup("weight", 0, 3, 3),),
    )  # fmt: skip
    values = torch.tensor([127, -64, 1.5, -63.5, 0, 0.5]) * 2.0**-10
    update = Update(5, 4, Selection(torch.tensor([True, False, True])), values, 0.5)
    blob = documented_blob()
    assert pack_update(update, layout, CODECS["int8"], generator=GENERATOR) == blob
    seen = unpack_update(blob, layout, server_round=5, base_version=4)
    assert torch.equal(seen.values, values)
    assert seen.selection.mask.tolist() == [True, False, True]
    assert (seen.step_weight, seen.corrected, seen.report) == (0.5, False, None)


def test_the_documented_lengths_are_those_of_the_code():
    page = (Path(__file__).parents[3] / "docs" / "wire-format.md").read_text()
    assert f"**Report.** {TrainReport.num_bytes()} bytes" in page
    assert f"{EvaluateReport.num_bytes()} bytes:" in page
    assert len(pack_download(download_of(), LAYOUT)) == 28 + 20
    for codec in CODECS.values():
        assert re.search(rf"\| +{codec.number} \| `{codec.name}` +\|", page)


SOME = Selection(torch.arange(LAYOUT.num_channels) % 2 == 0)
READS = torch.arange(LAYOUT.num_entries) % (LAYOUT.num_channels + 1) - 1
CLOSED = replace(LAYOUT, readings=split_labels(LAYOUT, READS))


def download_of(**sections) -> Download:
    """A download of round 3 from version 1 to 2, without sections but for those that are given."""
    return Download(
        server_round=3, version=2, base_version=1, acknowledged_round=1, codec=CODECS["int8"], check=bytes(range(8)),
        **{"values": (), **sections},
    )  # fmt: skip


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
        assert_same(unpack_download(blob, layout), sent)
        assert section_bytes(blob)["control"] == len(sections["control"] or b"") + (9 if sections["derived"] else 0)


@given(numbers=st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4))
def test_rounds_and_versions_of_32_bits_come_through_or_are_refused(numbers):
    server_round, one, other, acknowledged_round = numbers
    sent = replace(
        download_of(), server_round=server_round, base_version=min(one, other), version=max(one, other),
        acknowledged_round=acknowledged_round,
    )  # fmt: skip
    assert_same(unpack_download(pack_download(sent, LAYOUT), LAYOUT), sent)
    if one != other:
        with pytest.raises(UpdateRejected, match="back to"):
            unpack_download(
                pack_download(replace(sent, base_version=sent.version, version=sent.base_version), LAYOUT), LAYOUT
            )


@pytest.mark.parametrize(
    ("offset", "layout", "value", "reason"),
    [
        *HEADER_CASES,
        (28, "I", 3, "from version 3 back to 2"),
        (32, "I", 0, "from version 1 back to 0"),
        (48, "B", 0, "section 0 is unknown"),
        (48, "B", 4, "gone for good"),
        (57, "B", 9, "section 9 is unknown"),
        (57, "B", 5, "unexpected report section"),
        (49, "Q", 1, "expected a bitmap|belong to no section"),
        (58, "Q", 2**64 - 1, "runs over the end"),
    ],
)
def test_every_header_field_of_a_download_is_checked(offset, layout, value, reason):
    """The header is 28 bytes, the download's own 20, and the table of sections follows at 48."""
    blob = bytearray(pack_download(whole_download(), LAYOUT))
    struct.pack_into("<" + layout, blob, offset, value)
    with pytest.raises(UpdateRejected, match=reason):
        unpack_download(bytes(blob), LAYOUT)


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
        unpack_download(pack_download(download_of(**sections), LAYOUT), LAYOUT)


def with_section(kind: int, data: bytes) -> bytes:
    """A download of one section with any bytes."""
    blob = bytearray(pack_download(download_of(), LAYOUT))
    blob[7] = 1
    struct.pack_into("<Q", blob, 20, len(data))
    return bytes(blob) + struct.pack("<BQ", kind, len(data)) + data


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
        unpack_download(with_section(1, data), LAYOUT)


@pytest.mark.parametrize("length", [0, 8, 10])
def test_numbers_that_control_follows_from_have_one_length(length):
    with pytest.raises(UpdateRejected, match=f"expected 9 bytes that control follows from, got {length}"):
        unpack_download(with_section(8, bytes(length)), LAYOUT)


def test_a_truncated_extended_or_changed_download_is_refused_or_well_formed():
    sent = replace(whole_download(), values=(b"one",))
    blob = pack_download(sent, LAYOUT)
    for length in range(len(blob)):
        with pytest.raises(UpdateRejected):
            unpack_download(blob[:length], LAYOUT)
    with pytest.raises(UpdateRejected):
        unpack_download(blob + b"\0", LAYOUT)
    for position, mask in product(range(len(blob)), (1, 0x80, 0xFF)):
        changed = bytearray(blob)
        changed[position] ^= mask
        try:
            seen = unpack_download(bytes(changed), LAYOUT)
        except UpdateRejected:
            continue
        assert bool(torch.isfinite(seen.base).all())
        assert len(seen.snapshot) == len(seen.selection.entries(LAYOUT))
        assert 0 <= seen.derived.damping <= 1


@pytest.mark.parametrize("controls", [False, True])
def test_what_a_download_takes_beside_its_change_is_foretold(controls):
    derived = DerivedControl(0.5, 0.25, True) if controls else None
    blob = pack_download(download_of(values=(b"a change",), derived=derived), LAYOUT)
    assert len(blob) == download_overhead(controls=controls) + len(b"a change")


@settings(max_examples=10)
@given(data=st.data())
@pytest.mark.parametrize("mask", [[True] * LAYOUT.num_channels, [True, False] * 6 + [True]])
def test_an_update_keeps_to_the_bytes_it_may_take_unless_hardly_a_value_is_left(mask, data):
    """The least it takes is what it takes at no bytes at all."""
    _, update = packed(mask, seed=data.draw(st.integers(0, 99)))
    limit = data.draw(st.integers(150, 260))
    coarsest, limited = (
        pack_update(update, LAYOUT, CODECS["adaptive"], generator=torch.Generator(), max_bytes=max_bytes)
        for max_bytes in (0, limit)
    )
    assert len(limited) <= max(limit, len(coarsest))
    unpack(limited)


EVALUATION = EvaluateReport(num_examples=20, accuracy=0.75, loss=0.5)


@pytest.mark.parametrize("report", [REPORT, EVALUATION])
def test_a_report_comes_through(report):
    data = report.to_bytes()
    assert len(data) == report.num_bytes()
    assert type(report).from_bytes(data) == report


@pytest.mark.parametrize("report", [REPORT, EVALUATION])
def test_a_report_of_another_length_is_refused(report):
    data = report.to_bytes()
    for wrong in (b"", data[:-1], data + b"\0"):
        with pytest.raises(UpdateRejected, match=f"expected a report of {len(data)} bytes, got {len(wrong)}"):
            type(report).from_bytes(wrong)


@pytest.mark.parametrize("name", [name for name, value in vars(REPORT).items() if isinstance(value, float)])
@pytest.mark.parametrize("value", [float("nan"), -1.0, -float("inf")])
def test_a_number_of_a_report_that_is_none_or_negative_is_refused(name, value):
    with pytest.raises(UpdateRejected, match=f"the report's {name} must lie in"):
        TrainReport.from_bytes(replace(REPORT, **{name: value}).to_bytes())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_examples", 2**32 - 1),
        ("accuracy", 1.5),
        ("loss", 1e10),
        ("train_loss", float("inf")),
        ("keep_ratio", 1.01),
        ("flops_ratio", 2.0),
        ("budget_kind", 200),
        ("validation_gain", 1.5),
        ("training_seconds", 1e20),
        ("selection_seconds", float("inf")),
        ("decision_seconds", 1e10),
        ("seconds", 1e10),
    ],
)
def test_a_number_of_a_report_beyond_its_range_is_refused(name, value):
    with pytest.raises(UpdateRejected, match=f"the report's {name} must lie in"):
        TrainReport.from_bytes(replace(REPORT, **{name: value}).to_bytes())


def test_a_client_may_say_that_it_has_no_limit():
    assert TrainReport.from_bytes(replace(REPORT, budget_limit=float("inf")).to_bytes()).budget_limit == float("inf")


def test_a_report_that_is_refused_refuses_its_update():
    with pytest.raises(UpdateRejected, match="the report's accuracy"):
        unpack(packed([True] * LAYOUT.num_channels, report=replace(REPORT, accuracy=2.0))[0])


def test_a_bitmap_beyond_the_last_channel_is_refused():
    with pytest.raises(UpdateRejected, match="beyond the last"):
        unpack_bitmap(b"\xff\xff", 13)
    with pytest.raises(UpdateRejected, match="expected a bitmap of 2 bytes"):
        unpack_bitmap(b"\xff", 13)


def test_different_layouts_have_different_fingerprints():
    layouts = [
        interleaved_layout([(2, 3)]),
        interleaved_layout([(3, 2)]),
        interleaved_layout([(1, 3), (1, 3)]),
        interleaved_layout([(1, 6)]),
        interleaved_layout([(1, 5)], statistics=1),
    ]
    assert len({layout.fingerprint for layout in layouts}) == len(layouts)


@pytest.mark.parametrize("name", ["accuracy", "keep_ratio", "flops_ratio", "validation_gain"])
def test_a_share_that_rounding_took_beyond_its_range_is_its_end(name):
    """The smallest case seen was a flops_ratio of 1.0000000000000067, for which every update was refused."""
    for off, end in ((1 + 6.7e-15, 1.0), (-6.7e-15, 0.0)):
        blob = replace(REPORT, **{name: off}).to_bytes()
        assert getattr(TrainReport.from_bytes(blob), name) == end
