"""An update as bytes: what goes in comes out, and nothing damaged comes through."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spatl.channels.layout import ChannelGroup, EncoderLayout, Labels, Places
from spatl.channels.selection import Selection, pack_bitmap, unpack_bitmap
from spatl.errors import UpdateRejected
from spatl.wire.blob import section_bytes
from spatl.wire.codecs import CODECS
from spatl.wire.dithered import decode_dithered, encode_dithered
from spatl.wire.download import pack_download, unpack_download
from spatl.wire.reports import EvaluateReport, TrainReport
from spatl.wire.update import Update, pack_update, unpack_update, update_bytes
from tests.support.dither import numbers
from tests.support.layouts import interleaved_layout, make_update
from tests.support.messages import (
    FLOAT32,
    GENERATOR,
    HEADER_CASES,
    LAYOUT,
    REPORT,
    download_of,
    forged,
    masks,
    packed,
    unpack,
    written,
)


@given(mask=masks, step_weight=st.floats(1e-6, 1e6))
@pytest.mark.parametrize("report", [None, REPORT])
def test_unpacking_gives_back_what_was_packed(mask, step_weight, report):
    blob, update = packed(mask, step_weight=step_weight, report=report)
    seen = unpack(blob)
    assert torch.equal(seen.selection.mask, update.selection.mask)
    assert torch.equal(seen.values, update.values)
    assert (seen.server_round, seen.base_version, seen.step_weight) == (1, 0, step_weight)
    told = None if report is None else replace(report, keep_ratio=update.selection.keep_ratio(LAYOUT))
    assert (seen.corrected, seen.report) == (True, told)


@given(mask=masks)
def test_the_length_is_foretold_and_an_unselected_channel_costs_one_bit_at_most(mask):
    blob, update = packed(mask)
    kept = int(update.selection.mask.sum())
    foretold = update_bytes(LAYOUT, FLOAT32, num_values=len(update.values), num_channels=kept)
    late = replace(update, server_round=2**32 - 1, base_version=2**31 - 1)
    assert len(blob) < foretold == len(pack_update(late, LAYOUT, FLOAT32, generator=GENERATOR))
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
def test_a_forged_byte_is_refused_or_changes_a_value_only(mask, data):
    blob, update = packed(mask)
    position = data.draw(st.integers(0, len(blob) - 9))
    changed = blob[position] ^ data.draw(st.integers(1, 255))
    try:
        seen = unpack(forged(blob, written(position, "B", changed)))
    except UpdateRejected:
        return
    assert bool(torch.isfinite(seen.values).all())
    assert len(seen.values) == len(seen.selection.entries(LAYOUT)) == len(update.values)


@pytest.mark.parametrize(
    ("offset", "layout", "value", "reason"),
    [
        *HEADER_CASES,
        (7, "B", 2, "promises"),
        (12, "B", 7, "answers round 7"),
        (12, "B", 127, "answers round 127"),
        (13, "B", 11, "from version 5"),
        (13, "B", 127, "from version 63"),
        (14, "d", float("nan"), "step weight"),
        (14, "d", float("inf"), "step weight"),
        (14, "d", 0.0, "step weight"),
        (14, "d", -1.0, "step weight"),
        (22, "B", 0, "section 0 is unknown"),
        (22, "B", 16, "section 16 is unknown"),
        (22, "B", 1, "section 1 is unknown or repeated"),
        (22, "B", 3, "no indices section"),
        (22, "B", 4, "gone for good"),
        (24, "B", 7, "unexpected values section"),
        (26, "B", 8, "no values section"),
        (23, "B", 100, "promises"),
        (25, "B", 1, "promises"),
        (27, "B", 1, "promises"),
        (23, "H", 0x0082, "longer than it needs"),
        (28, "B", 0, "bytes of float32 values"),
        (29, "B", 0x35, "beyond the last"),
    ],
)
def test_every_header_field_and_section_of_an_update_is_checked(offset, layout, value, reason):
    blob, _ = packed([True, False] * (LAYOUT.num_channels // 2) + [True])
    with pytest.raises(UpdateRejected, match=reason):
        unpack(forged(blob, written(offset, layout, value)))


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
        unpack_download(packed([True] * LAYOUT.num_channels)[0], LAYOUT, FLOAT32)
    with pytest.raises(UpdateRejected, match="kind 1, expected 2"):
        unpack(pack_download(download_of(), LAYOUT))


def documented_bytes(place: int) -> bytes:
    """The bytes of an example in docs/wire-format.md; every line begins where the one before ended."""
    page = (Path(__file__).parents[3] / "docs" / "wire-format.md").read_text()
    blob = b""
    for line in page.split("```hexdump\n")[1 + place].split("```")[0].splitlines():
        offset, digits, _ = re.fullmatch(r" *(\d+)  ((?:[0-9a-f]{2} )+) +(\S.*)", line).groups()
        assert int(offset) == len(blob)
        blob += bytes.fromhex(digits)
    return blob


def test_the_documented_values_under_dither_are_what_is_encoded():
    values, tensors = torch.tensor([127, -64, 1.5, -63.5, 0, 0.5]) * 2.0**-10, torch.tensor([0, 0, 0, 0, 1, 1])
    places = Places(tensors, tensors)
    assert encode_dithered(values, places, step=2.0**-4, seed=7) == documented_bytes(1)
    expected = [q - (number - 2**23) / 2**24 for q, number in zip((2, -1, 0, -1), numbers(7, 4), strict=True)]
    seen = decode_dithered(memoryview(documented_bytes(1)), places)
    assert torch.equal(seen, torch.tensor([*expected, 0.0, 0.0]) * 2.0**-4)


def test_the_documented_example_is_what_is_packed():
    layout = EncoderLayout(
        {"weight": torch.Size([3, 2]), "bias": torch.Size([3])}, 9,
        (Labels(torch.arange(3), 2), Labels(torch.arange(3))), (ChannelGroup("weight", 0, 3, 3),),
    )  # fmt: skip
    values = torch.tensor([127, -64, 1.5, -63.5, 0, 0.5]) * 2.0**-10
    update = Update(5, 4, Selection(torch.tensor([True, False, True])), values, 0.5)
    blob = documented_bytes(0)
    assert pack_update(update, layout, CODECS["int8"], generator=GENERATOR) == blob
    seen = unpack_update(blob, layout, CODECS["int8"], server_round=5, base_version=4)
    assert torch.equal(seen.values, values)
    assert seen.selection.mask.tolist() == [True, False, True]
    assert (seen.step_weight, seen.corrected, seen.report) == (0.5, False, None)


def test_the_documented_lengths_are_those_of_the_code():
    page = (Path(__file__).parents[3] / "docs" / "wire-format.md").read_text()
    assert f"**Report.** {TrainReport.num_bytes()} bytes" in page
    assert f"{EvaluateReport.num_bytes()} bytes:" in page
    assert len(pack_download(download_of(), LAYOUT)) == 12 + 4 + 8 + 8
    for codec in CODECS.values():
        assert re.search(rf"\| +{codec.number} \| `{codec.name}` +\|", page)


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
    unpack(limited, CODECS["adaptive"])


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
