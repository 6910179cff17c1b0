"""Rows that travel are the entries that travel: the same are taken, put and added to as one by one."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.channels import kept as kept_entries
from spatl.channels import layout as layouts
from spatl.channels.kept import Kept
from spatl.channels.layout import ChannelGroup, EncoderLayout, Labels
from spatl.channels.selection import Selection
from spatl.channels.vectors import PART

SHAPES = st.lists(st.tuples(st.lists(st.integers(1, 12), max_size=3), st.integers(0, 2)), min_size=1, max_size=5)
"""Shapes of tensors, and the dimension along which channels own each."""


def layout_of(shapes: list[tuple[list[int], int]], num_channels: int) -> EncoderLayout:
    """A layout of tensors of some shapes, whose channels own entries along a dimension of each, in some order."""
    sizes, owners = dict[str, torch.Size](), list[Labels]()
    for place, (shape, dimension) in enumerate(shapes):
        size, along = torch.Size(shape), min(dimension, max(0, len(shape) - 1))
        labels = (3 * place + 7 * torch.arange(shape[along] if shape else 1)) % num_channels
        sizes[str(place)] = size
        owners.append(Labels.along(labels, size, along))
    groups = (ChannelGroup("all", 0, num_channels, 0),)
    return EncoderLayout(sizes, sum(size.numel() for size in sizes.values()), tuple(owners), groups)


@given(shapes=SHAPES, data=st.data())
def test_what_travels_of_a_part_is_what_its_channels_say(shapes, data):
    layout = layout_of(shapes, 5)
    selection = Selection(torch.tensor(data.draw(st.lists(st.booleans(), min_size=5, max_size=5))))
    start = data.draw(st.integers(0, layout.num_entries))
    part = slice(start, data.draw(st.integers(start, layout.num_entries)))
    bits, kept = selection.mask[layout.owner[part]], selection.kept_in(part, layout)
    numbers = torch.arange(100, 100 + len(bits))
    assert kept.number == int(bits.sum())
    assert torch.equal(kept.take(numbers), numbers[bits])
    assert torch.equal(kept.positions(), bits.nonzero().squeeze(1))
    new = -torch.arange(1, kept.number + 1)
    expected, changed, summed = numbers.clone(), numbers.clone(), numbers.clone()
    expected[bits] = new
    kept.put_(changed, new)
    assert torch.equal(changed, expected)
    kept.add_(summed, new - numbers[bits])
    assert torch.equal(summed, expected)
    length = data.draw(st.integers(0, len(bits)))
    assert torch.equal(kept.before(length).take(numbers), numbers[:length][bits[:length]])


@given(bits=st.lists(st.booleans(), max_size=20))
def test_bits_say_which_entries_travel(bits):
    kept, numbers = Kept.of_bits(torch.tensor(bits, dtype=torch.bool)), torch.arange(len(bits))
    assert kept.take(numbers).tolist() == [place for place, bit in enumerate(bits) if bit]


@given(shapes=SHAPES, mask=st.lists(st.booleans(), min_size=5, max_size=5))
def test_each_tensor_has_as_many_values_as_entries_that_travel(shapes, mask):
    layout, selection = layout_of(shapes, 5), Selection(torch.tensor(mask))
    ends = torch.tensor(layout.starts)
    travel = selection.mask[layout.owner]
    expected = [int(travel[start:stop].sum()) for start, stop in itertools.pairwise(ends.tolist())]
    assert selection.tensor_counts(layout).tolist() == expected


@pytest.mark.parametrize("expands", [False, True])
def test_a_layer_of_several_parts_gives_and_takes_the_same_whether_entries_are_kept(expands, monkeypatch):
    """A layer of 300 outputs and 1,000 inputs with biases, which is two parts and some, that end within a row."""
    monkeypatch.setattr(layouts, "EXPANDED_ENTRIES", 10**9 if expands else -1)
    layout = layout_of([([300, 1000], 0), ([300], 0)], 300)
    assert layout.num_entries > 2 * PART
    assert layout.is_expanded == expands
    draw = torch.Generator().manual_seed(0)
    selection = Selection(torch.rand(300, generator=draw) < 0.7)
    vector, bits = torch.randn(layout.num_entries, generator=draw), selection.mask[layout.owner]
    values = vector[bits]
    assert torch.equal(selection.take(vector, layout), values)
    assert torch.equal(selection.entries(layout), bits.nonzero().squeeze(1))
    spread = torch.zeros(layout.num_entries)
    for part, kept, own in selection.value_parts(layout):
        assert kept is not None
        kept.put_(spread[part], values[own])
    assert torch.equal(spread, torch.where(bits, vector, 0.0))
    assert torch.equal(layout.spread(torch.arange(300.0), slice(7, 290_000)), layout.owner[7:290_000].float())


def test_a_small_layout_finds_what_travels_once_for_all_selections_with_the_same_bits():
    layout, mask = layout_of([([4, 3], 0)], 4), torch.tensor([True, False, True, True])
    first, again = ([kept for _, kept, _ in Selection(mask.clone()).value_parts(layout)] for _ in range(2))
    assert first[0] is again[0]
    assert first[0] is not None
    assert first[0].positions().tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]  # rows belong to channels 0, 3, 2, 1
    (other,) = (kept for _, kept, _ in Selection(~mask).value_parts(layout))
    assert other is not None
    assert other.number == 12 - first[0].number
    (beginning,) = (kept for _, kept, _ in Selection(mask).value_parts(layout, 6))
    assert beginning is None  # all six of them travel


def test_a_layout_keeps_what_travels_of_the_last_selections_alone(monkeypatch):
    """Each of the selections has six values of twelve, so that ten are those of one, and a second has no room."""
    monkeypatch.setattr(kept_entries, "KEPT_POSITIONS", 10)
    layout = layout_of([([4, 3], 0)], 4)
    masks = [torch.tensor(bits) for bits in ([True, True, False, False], [False, False, True, True])]

    def found(mask):
        return next(kept for _, kept, _ in Selection(mask).value_parts(layout))

    first = found(masks[0])
    assert found(masks[0]) is first
    found(masks[1])
    assert found(masks[0]) is not first
