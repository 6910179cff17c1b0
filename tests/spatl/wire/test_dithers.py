"""Rounding under dither, compiled: the same bytes and values, to the bit, as NumPy's."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.channels.layout import Places
from spatl.channels.vectors import PART
from spatl.extensions.compiled import extension
from spatl.wire import dithered
from spatl.wire.dithered import encode_dithered, read_dithered

compiled = pytest.mark.skipif(not dithered.IS_COMPILED, reason="this installation has not compiled it")


def message(rng: np.random.Generator, number: int) -> tuple[torch.Tensor, Places]:
    """Values of all magnitudes, whole numbers, zeros of both signs and some that need an escape, in a few tensors."""
    values = rng.standard_normal(number) * 2.0 ** rng.integers(-30, 4, number)
    some = rng.random(number)
    values[some < 0.3] = np.rint(values[some < 0.3])
    values[some > 0.97] *= 2.0 ** rng.integers(0, 30)
    tensors = torch.from_numpy(np.sort(rng.integers(0, 5, number)))
    return torch.from_numpy(values.astype(np.float32)), Places(tensors, tensors)


def both(values: torch.Tensor, places: Places, seed: int, parts: list[slice]) -> list[tuple[bytes, list[list[int]]]]:
    """What the compiled one and NumPy's write, and the bits of the values that each reads of it, part by part."""
    found = []
    for is_compiled in (True, False):
        with patch.object(dithered, "IS_COMPILED", is_compiled):
            data = encode_dithered(values, places, step=1.0, seed=seed)
            read = read_dithered(memoryview(data), places)
            found.append((data, [read.of_part(part).view(torch.int32).tolist() for part in parts]))
    return found


@compiled
@given(seed=st.integers(0, 2**32 - 1), number=st.integers(1, 1300), data=st.data())
def test_both_write_the_same_bytes_and_read_the_same_values_of_them(seed, number, data):
    """Parts that begin at an odd value begin within an output of the dither's generator."""
    start = data.draw(st.integers(0, number - 1))
    part = slice(start, data.draw(st.integers(start + 1, number)))
    one, other = both(*message(np.random.default_rng(seed), number), seed, [slice(0, number), part])
    assert one == other


@compiled
@pytest.mark.slow
def test_both_do_of_a_message_of_more_than_a_part_and_of_one_whose_values_are_counted_one_in_seven():
    for number in (PART + 3, 2**20 + PART + 5):
        values, places = message(np.random.default_rng(number), number)
        one, other = both(values, places, 7, [slice(PART, PART + 3)])
        assert one == other


@compiled
def test_what_does_not_fit_is_refused():
    dithers, nothing = extension("spatl.wire.dithers"), np.zeros(0, dtype=np.int32)
    values, share, end = np.zeros(3, dtype=np.float32), np.ones(1, dtype=np.float32), np.array([2])
    symbols = np.zeros(3, dtype=np.uint8)
    with pytest.raises(ValueError, match="do not fit"):
        dithers.undither(values, symbols[:2], nothing, share, end, 1, 0, 1.0)
    with pytest.raises(ValueError, match="of no tensor"):
        dithers.undither(values, symbols, nothing, share, end, 1, 0, 1.0)
    with pytest.raises(ValueError, match="has no integer"):
        dithers.undither(values, symbols + np.uint8(128), nothing, share, end + 1, 1, 0, 1.0)
    with pytest.raises(ValueError, match="of no density"):
        dithers.dither(
            np.zeros(3, dtype=np.int32), symbols + np.uint8(8), np.zeros(1024, dtype=int), values, 1, 0, 1.0, 1
        )
    with pytest.raises(ValueError, match="do not fit"):
        dithers.dither(nothing, symbols, np.zeros(1024, dtype=int), values, 1, 0, 1.0, 1)
    with pytest.raises(ValueError, match="two numbers"):
        dithers.label(symbols, 1, 2)
