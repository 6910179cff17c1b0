"""The blob: what goes in comes out, and nothing damaged comes through."""

import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.codec import CODECS
from spatl.errors import UpdateRejected
from spatl.protocol import (
    Model,
    Update,
    pack_model,
    pack_update,
    section_bytes,
    unpack_model,
    unpack_update,
    update_bytes,
)
from spatl.selection.selection import Selection, pack_bitmap, unpack_bitmap
from tests.layouts import interleaved_layout, make_update

LAYOUT = interleaved_layout([(1, 3), (7, 4), (5, 2)], statistics=3)
FLOAT32 = CODECS["float32"]
GENERATOR = torch.Generator()

masks = st.lists(st.booleans(), min_size=LAYOUT.num_channels, max_size=LAYOUT.num_channels)


def packed(mask, *, seed=0, step_weight=0.5) -> tuple[bytes, Update]:
    values = torch.randn(LAYOUT.num_entries, generator=torch.Generator().manual_seed(seed))
    update = make_update(LAYOUT, mask, values, step_weight=step_weight)
    return pack_update(update, LAYOUT, FLOAT32, generator=GENERATOR), update


def unpack(blob: bytes) -> Update:
    return unpack_update(blob, LAYOUT, server_round=1, base_version=0)


@given(mask=masks, step_weight=st.floats(1e-6, 1e6))
def test_unpacking_gives_back_what_was_packed(mask, step_weight):
    blob, update = packed(mask, step_weight=step_weight)
    seen = unpack(blob)
    assert torch.equal(seen.selection.mask, update.selection.mask)
    assert torch.equal(seen.values, update.values)
    assert (seen.server_round, seen.base_version, seen.step_weight) == (1, 0, step_weight)


@given(mask=masks)
def test_a_model_of_some_channels_round_trips_with_zeros_elsewhere_and_fewer_bytes(mask):
    selection = Selection(torch.tensor(mask))
    model = Model(3, 2, torch.randn(LAYOUT.num_entries) * selection.mask[LAYOUT.owner], None, selection)
    blob = pack_model(model, LAYOUT, FLOAT32, generator=GENERATOR)
    seen = unpack_model(blob, LAYOUT)
    assert torch.equal(seen.encoder, model.encoder)
    assert torch.equal(seen.selection.mask, selection.mask)
    assert section_bytes(blob)["values"] == 4 * int(selection.mask[LAYOUT.owner].sum())


@pytest.mark.parametrize("control", [None, torch.linspace(-1, 1, LAYOUT.num_parameter_entries)])
def test_a_model_round_trips_with_and_without_control(control):
    model = Model(3, 2, torch.randn(LAYOUT.num_entries), control)
    seen = unpack_model(pack_model(model, LAYOUT, FLOAT32, generator=GENERATOR), LAYOUT)
    assert (seen.server_round, seen.version) == (3, 2)
    assert torch.equal(seen.encoder, model.encoder)
    assert (seen.control is None) == (control is None)
    if control is not None:
        assert torch.equal(seen.control, control)


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


@pytest.mark.parametrize(
    ("offset", "layout", "value", "reason"),
    [
        (0, "4s", b"EVIL", "not a SPATL blob"),
        (4, "B", 99, "format version 99"),
        (5, "B", 1, "kind 1"),
        (6, "B", 200, "codec number 200"),
        (7, "B", 3, "promises"),
        (8, "I", 7, "answers round 7"),
        (12, "I", 5, "from version 5"),
        (16, "8s", b"otherone", "fingerprint"),
        (24, "d", float("nan"), "step weight"),
        (24, "d", 0.0, "step weight"),
        (24, "d", -1.0, "step weight"),
        (32, "Q", 2**63, "promises"),
    ],
)
def test_every_header_field_is_checked(offset, layout, value, reason):
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
