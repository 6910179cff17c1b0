"""A layout tells of any part of the vector who owns and reads it, without having the whole of it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.channels import layout as layouts
from spatl.channels.layout import EncoderLayout, Labels
from spatl.channels.selection import Selection
from spatl.channels.vectors import PART
from tests.support.federations import blueprint_of, tiny_config

LAYOUT = blueprint_of(tiny_config(method="ssfl")).layout


@given(shape=st.lists(st.integers(1, 5), max_size=4), data=st.data())
def test_labels_along_a_dimension_are_those_of_the_whole_tensor(shape, data):
    size = torch.Size(shape)
    dimension = data.draw(st.integers(0, max(0, len(shape) - 1)))
    labels = torch.tensor(data.draw(st.permutations(range(shape[dimension] if shape else 1))))
    view = [1] * len(shape)
    if shape:
        view[dimension] = shape[dimension]
    whole = labels.view(view).expand(size).reshape(-1)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    found, place = [torch.zeros(0, dtype=torch.int64)], start
    for begin, end, length, own in Labels.along(labels, size, dimension).runs_in(start, stop):
        assert begin == place < end == begin + length * len(own)
        found.append(own.repeat_interleave(length))
        place = end
    assert place == stop
    assert torch.cat(found).tolist() == whole[start:stop].tolist()


def unexpanded(monkeypatch: pytest.MonkeyPatch) -> EncoderLayout:
    """The same layout, which keeps nothing for each entry."""
    monkeypatch.setattr(layouts, "EXPANDED_ENTRIES", -1)
    return EncoderLayout(LAYOUT.shapes, LAYOUT.num_parameter_entries, LAYOUT.owners, LAYOUT.groups, LAYOUT.readings)


@pytest.mark.parametrize("closed", [False, True])
def test_a_layout_without_a_number_for_each_entry_says_the_same(closed, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    selection = Selection(torch.rand(LAYOUT.num_channels, generator=draw) < 0.5, closed)
    entries, places = selection.entries(LAYOUT), LAYOUT.places(selection)
    channels, runs = places.channels, places.runs
    other = unexpanded(monkeypatch)
    assert other.fingerprint == LAYOUT.fingerprint
    assert torch.equal(other.owner, LAYOUT.owner)
    assert torch.equal(other.channel_sizes, torch.bincount(LAYOUT.owner, minlength=LAYOUT.num_channels))
    assert torch.equal(selection.entries(other), entries)
    assert selection.num_entries(other) == len(entries) == len(places)
    assert torch.equal(other.places(selection).channels, channels)
    assert torch.equal(channels, LAYOUT.owner[entries])
    tensors = torch.repeat_interleave(torch.tensor([shape.numel() for shape in LAYOUT.shapes.values()]))[entries]
    assert all(map(torch.equal, runs, torch.unique_consecutive(tensors, return_counts=True)))


def test_what_travels_is_taken_in_the_order_of_the_vector():
    draw = torch.Generator().manual_seed(1)
    selection = Selection(torch.rand(LAYOUT.num_channels, generator=draw) < 0.5)
    vector = torch.randn(LAYOUT.num_entries, generator=draw)
    assert torch.equal(selection.take(vector, LAYOUT), vector[selection.entries(LAYOUT)])
    everything = Selection(torch.ones(LAYOUT.num_channels, dtype=torch.bool))
    assert everything.take(vector, LAYOUT) is vector


def test_a_large_layout_takes_no_memory_for_its_entries():
    """A layer of 2^10 outputs and 2^10 inputs: labels of 2^10 numbers, and parts of them as they are asked for."""
    shape = torch.Size([2**10, 2**10])
    labels = Labels.along(torch.arange(2**10), shape, 0)
    layout = EncoderLayout({"weight": shape}, shape.numel(), (labels,), ())
    part = slice(3 * PART + 7, 3 * PART + 7 + 2**10)
    assert layout.owner_in(part).tolist() == [place >> 10 for place in range(part.start, part.stop)]
    assert not layout.is_expanded
