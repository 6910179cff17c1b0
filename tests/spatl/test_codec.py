"""Codecs: what the receiver decodes, and how many bytes it takes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.codec import CODECS, CODECS_BY_NUMBER
from spatl.errors import UpdateRejected

values = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=40)


def coded(name: str, numbers: list[float]) -> torch.Tensor:
    codec, channels = CODECS[name], torch.zeros(len(numbers), dtype=torch.int64)
    data = codec.encode(torch.tensor(numbers, dtype=torch.float32), channels, generator=torch.Generator())
    assert len(data) == codec.num_bytes(num_values=len(numbers), num_channels=1)
    return codec.decode(memoryview(data), channels)


@given(numbers=values)
def test_float32_comes_through_exactly(numbers):
    assert torch.equal(coded("float32", numbers), torch.tensor(numbers, dtype=torch.float32))


@given(numbers=values)
def test_float16_is_the_nearest_half_or_its_largest(numbers):
    limit = float(np.finfo(np.float16).max)
    nearest = np.clip(np.array(numbers, dtype=np.float32), -limit, limit).astype(np.float16).astype(np.float32)
    assert np.array_equal(coded("float16", numbers).numpy(), nearest)


@pytest.mark.parametrize("name", CODECS)
def test_what_is_decoded_is_coded_to_itself(name):
    """So that a client and the server that decodes its update go on from the same numbers."""
    seen = coded(name, torch.randn(50, generator=torch.Generator().manual_seed(1)).tolist())
    assert torch.equal(coded(name, seen.tolist()), seen)


@pytest.mark.parametrize("name", CODECS)
def test_a_wrong_length_is_refused(name):
    with pytest.raises(UpdateRejected, match=f"bytes of {name} values, got 3"):
        CODECS[name].decode(memoryview(b"abc"), torch.zeros(1, dtype=torch.int64))


def test_numbers_on_the_wire_are_distinct():
    assert len(CODECS_BY_NUMBER) == len(CODECS)
