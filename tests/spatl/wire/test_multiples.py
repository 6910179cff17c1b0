"""Kept values come back to the bit, in a byte each where they are multiples of one step."""

import pytest
import torch

from spatl.wire import multiples
from spatl.wire.codecs import CODECS
from spatl.wire.multiples import Multiples
from spatl.wire.update import pack_update
from tests.support.layouts import make_update
from tests.support.messages import LAYOUT, unpack

NUMBERS = torch.tensor([0, 1, -1, 3, 127, -127, 128, -40_000, 2, 0] * 30)


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(multiples, "FEWEST", 1)
    monkeypatch.setattr(multiples, "MOST_ESCAPES", 1.0)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


@pytest.mark.parametrize("step", [2.0**-12, 0.0123, 1e-30])
def test_multiples_come_back_to_the_bit_in_parts(step):
    values = NUMBERS.float() * torch.tensor(step)
    kept = Multiples.of(values)
    assert kept.values is None
    assert kept.num_bytes == len(values) + 4 * 60  # the two of ten that are no bytes
    assert same_bits(kept.of_part(slice(0, len(values))), values)
    assert same_bits(kept.of_part(slice(7, 19)), values[7:19])


@pytest.mark.parametrize(
    "values",
    [
        torch.randn(50, generator=torch.Generator().manual_seed(0)),
        torch.tensor([1.0, -0.0]),  # which no whole number is
        torch.tensor([1e-30, 1e10]),
        torch.tensor([1.0, float("nan")]),
        torch.tensor([1.0, 2.0], dtype=torch.float64),
        torch.tensor([0.0, float("inf")]),
    ],
)
def test_what_is_no_multiple_is_kept_as_it_is(values):
    kept = Multiples.of(values)
    assert kept.values is values
    assert kept.of_part(slice(0, len(values))).data_ptr() == values.data_ptr()


def test_zeros_are_multiples_of_anything():
    assert Multiples.of(torch.zeros(3)).of_part(slice(0, 2)).tolist() == [0.0, 0.0]


def test_a_vector_of_many_large_numbers_is_kept_as_it_is(monkeypatch):
    monkeypatch.setattr(multiples, "MOST_ESCAPES", 0.1)
    assert Multiples.of(NUMBERS.float()).values is not None


@pytest.mark.parametrize("mask", [[True] * LAYOUT.num_channels, [True, False] * 6 + [True]])
def test_an_update_under_dither_is_kept_in_a_byte_a_value_unless_its_values_were_changed(mask):
    values = torch.randn(LAYOUT.num_entries, generator=torch.Generator().manual_seed(2))
    codec = CODECS["dithered"]
    blob = pack_update(make_update(LAYOUT, mask, values), LAYOUT, codec, generator=torch.Generator())
    update = unpack(blob, codec)
    kept = Multiples.of(update.values, update.compact)
    assert kept.values is None
    assert kept.num_bytes == len(update.values)
    assert same_bits(kept.of_part(slice(0, len(update.values))), update.values)
    assert same_bits(kept.of_part(slice(3, 10)), update.values[3:10])
    changed = update.values * torch.where(torch.arange(len(update.values)) == 4, 0.5, 1.0)
    assert Multiples.of(changed, update.compact).values is changed
