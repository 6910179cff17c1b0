"""Whole numbers of as few bytes as they need: one way to write each, and nothing else is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatl.errors import UpdateRejected
from spatl.wire.varints import read_varint, varint


@pytest.mark.parametrize(
    ("number", "data"),
    [(0, "00"), (1, "01"), (127, "7f"), (128, "8001"), (300, "ac02"), (2**32 - 1, "ffffffff0f"),
     (2**63 - 1, "f" * 16 + "7f")],
)  # fmt: skip
def test_numbers_by_hand(number, data):
    assert varint(number) == bytes.fromhex(data)


@given(number=st.integers(0, 2**63 - 1), before=st.binary(max_size=3), after=st.binary(max_size=3))
def test_a_number_comes_through_wherever_it_stands(number, before, after):
    data = before + varint(number) + after
    assert read_varint(data, len(before)) == (number, len(data) - len(after))


@given(data=st.binary(max_size=12))
def test_what_is_read_is_what_would_be_written(data):
    try:
        number, end = read_varint(data, 0)
    except UpdateRejected:
        return
    assert data[:end] == varint(number)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "does not end"), (b"\x80", "does not end"), (b"\xff" * 9, "does not end"),
     (b"\x80\x00", "longer than it needs"), (b"\x81\x80\x00", "longer than it needs"),
     (varint(2**32), "is above 4294967295")],
)  # fmt: skip
def test_what_is_no_number_is_refused(data, reason):
    with pytest.raises(UpdateRejected, match=reason):
        read_varint(data, 0, most=2**32 - 1)


@pytest.mark.parametrize("number", [-1, 2**63])
def test_a_number_out_of_range_is_not_written(number):
    with pytest.raises(ValueError, match="must lie in"):
        varint(number)
