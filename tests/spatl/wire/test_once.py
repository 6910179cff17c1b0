"""Bytes that were decoded once are not decoded again, and what comes out is the caller's own."""

import pytest
import torch
from torch import Tensor

from spatl.channels.layout import Places
from spatl.channels.selection import Selection, select_all
from spatl.errors import UpdateRejected
from spatl.wire.adaptive import Adaptive, WholeSteps
from spatl.wire.floats import Float32
from spatl.wire.once import KEPT_VALUES, DecodedValues
from tests.support.layouts import interleaved_layout

LAYOUT = interleaved_layout([(3, 2)])
VALUES = torch.arange(LAYOUT.num_entries, dtype=torch.float32)


class Counting(Float32):
    def __init__(self) -> None:
        self.calls = 0

    def decode(self, data: memoryview, places: Places) -> Tensor:
        self.calls += 1
        return super().decode(data, places)


def encoded(values: Tensor) -> bytes:
    return values.numpy().tobytes()


def test_the_same_bytes_are_decoded_once_and_nobody_shares_the_result():
    decoded, codec, everything = DecodedValues(), Counting(), select_all(LAYOUT)
    first, _ = decoded.decode(codec, encoded(VALUES), LAYOUT, everything)
    first.zero_()
    second, _ = decoded.decode(codec, memoryview(encoded(VALUES)), LAYOUT, select_all(LAYOUT))
    second.zero_()
    assert torch.equal(decoded.decode(codec, encoded(VALUES), LAYOUT, everything)[0], VALUES)
    assert codec.calls == 1


def test_other_bytes_channels_and_codecs_are_decoded_for_themselves():
    decoded, codec = DecodedValues(), Counting()
    some = Selection(torch.tensor([True, False, True]))
    number = some.num_entries(LAYOUT)
    assert torch.equal(decoded.decode(codec, encoded(VALUES), LAYOUT, select_all(LAYOUT))[0], VALUES)
    assert torch.equal(decoded.decode(codec, encoded(VALUES + 1), LAYOUT, select_all(LAYOUT))[0], VALUES + 1)
    assert torch.equal(decoded.decode(codec, encoded(VALUES[:number]), LAYOUT, some)[0], VALUES[:number])
    assert codec.calls == 3
    other = Counting()
    decoded.decode(other, encoded(VALUES), LAYOUT, select_all(LAYOUT))
    assert other.calls == 1


def test_damaged_bytes_are_refused_each_time():
    decoded = DecodedValues()
    for _ in range(2):
        with pytest.raises(UpdateRejected):
            decoded.decode(Float32(), encoded(VALUES)[:-1], LAYOUT, select_all(LAYOUT))


def test_the_oldest_go_when_there_are_too_many():
    """Of vectors of a quarter of what is kept, the last four are; a vector of more than half of it is never kept."""
    quarter = interleaved_layout([(KEPT_VALUES // 4, 1)])
    decoded, codec = DecodedValues(), Counting()
    vectors = [torch.full((quarter.num_entries,), float(number)) for number in range(5)]
    assert quarter.num_entries == KEPT_VALUES // 4
    for each in vectors:
        decoded.decode(codec, encoded(each), quarter, select_all(quarter))
    for each in vectors[1:]:
        assert torch.equal(decoded.decode(codec, encoded(each), quarter, select_all(quarter))[0], each)
    assert codec.calls == 5
    decoded.decode(codec, encoded(vectors[0]), quarter, select_all(quarter))
    assert codec.calls == 6
    large, twice = interleaved_layout([(KEPT_VALUES // 2 + 1, 1)]), Counting()
    for _ in range(2):
        decoded.decode(twice, encoded(torch.zeros(large.num_entries)), large, select_all(large))
    assert twice.calls == 2


def test_of_a_large_encoder_the_last_message_is_kept_in_less_memory_until_it_is_read_again():
    """A client decodes its update, then the server does: once in all; after that nothing of it is kept."""
    calls = []

    class Told(Adaptive):
        def compact(self, data: memoryview, places: Places) -> WholeSteps:
            calls.append(len(data))
            return super().compact(data, places)

    large = interleaved_layout([(KEPT_VALUES // 2 + 1, 1)])
    decoded, codec, draw = DecodedValues(), Told(), torch.Generator().manual_seed(0)
    values = torch.randn(large.num_entries, generator=draw)
    data = codec.encode(values, large.places(), generator=draw)
    expected = codec.decode(memoryview(data), large.places())
    for number in (1, 1, 2):
        found, compact = decoded.decode(codec, data, large, select_all(large))
        assert torch.equal(found, expected)
        assert compact is not None
        assert torch.equal(compact.of_part(slice(7, 11)), expected[7:11])
        assert len(calls) == number
        found.zero_()
    decoded.decode(codec, codec.encode(-values, large.places(), generator=draw), large, select_all(large))
    decoded.decode(codec, data, large, select_all(large))
    assert len(calls) == 4
