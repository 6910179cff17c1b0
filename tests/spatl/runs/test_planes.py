"""Vectors of numbers in fewer bytes come back bit for bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.errors import DamagedState
from spatl.runs.planes import pack_planes, unpack_planes
from tests.support.bits import same_bits


@given(bits=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=200), times=st.sampled_from([1, 1000]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_every_bit_comes_back_those_of_nan_and_of_zeros_of_either_sign_too(dtype, bits, times):
    values = torch.tensor(bits, dtype=torch.int32).repeat(times).view(dtype)
    assert same_bits(unpack_planes(pack_planes(values), dtype), values)


@pytest.mark.parametrize(("name", "most"), [("weights", 3.45), ("zeros", 0.02), ("offsets", 2.0), ("noise", 4.001)])
def test_weights_take_less_than_three_and_a_half_bytes_and_offsets_half(name, most):
    """Normal floats; nothing; whole steps of 2^15, as after a change with a step of 2^-9; bits at random."""
    draw = torch.Generator().manual_seed(1)
    normal = torch.randn(2**18, generator=draw)
    values = {
        "weights": 0.02 * normal,
        "zeros": torch.zeros(2**18),
        "offsets": (normal.round() * 2**15).to(torch.int32),
        "noise": torch.randint(-(2**31), 2**31, (2**18,), generator=draw, dtype=torch.int64).to(torch.int32),
    }[name]
    data = pack_planes(values)
    assert len(data) <= most * len(values)
    assert same_bits(unpack_planes(data, values.dtype), values)


def test_what_is_cut_off_or_no_such_bytes_is_damaged():
    data = pack_planes(torch.randn(1000, generator=torch.Generator().manual_seed(1)))
    for damaged in (data[:-1], data[:20], data[:0], torch.cat([data, data[:1]])):
        with pytest.raises(DamagedState, match="is damaged"):
            unpack_planes(damaged, torch.float32)
