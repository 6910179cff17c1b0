"""BatchNorm statistics in bytes: what is sent arrives, and what is odd is refused with its reason."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.errors import UpdateRejected
from spatl.wire.codecs import CODECS
from spatl.wire.statistics import Arrival, Statistics, arrival_bytes, pack_statistics, unpack_statistics
from spatl.wire.varints import varint
from tests.support.layouts import interleaved_layout
from tests.support.messages import forged, written

CODEC, LAYOUT = CODECS["float32"], interleaved_layout([(3, 2)])


def drawn(number: int, seed: int = 1) -> Statistics:
    rng = torch.Generator().manual_seed(seed)
    return Statistics(torch.randn(number, generator=rng), torch.rand(number, generator=rng))


def unpacked(
    blob: bytes, number: int = 5, server_round: int = 7, version: int = 6, with_accuracy: bool = False
) -> Arrival:
    return unpack_statistics(
        blob, LAYOUT, CODEC, server_round=server_round, version=version, num_channels=number,
        with_accuracy=with_accuracy,
    )  # fmt: skip


def packed(statistics: Statistics, accuracy: float | None = None) -> bytes:
    return pack_statistics(Arrival(statistics, accuracy), LAYOUT, CODEC, server_round=7, version=6)


@given(st.integers(0, 40), st.integers(0, 1000))
def test_what_is_packed_is_read_again_in_eight_bytes_a_channel(number: int, seed: int) -> None:
    statistics = drawn(number, seed)
    blob = packed(statistics)
    assert len(blob) == 12 + 1 + 1 + 1 + len(varint(8 * number)) + 8 * number + 8
    read = unpacked(blob, number).statistics
    assert torch.equal(read.means, statistics.means)
    assert torch.equal(read.variances, statistics.variances)


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (0, float("nan"), "running means must be finite"),
        (2, float("inf"), "running means must be finite"),
        (4, -1e16, "running means must be finite and at most 1e"),
        (5, -1e-9, r"running variances must lie in \[0, 1e"),
        (9, float("nan"), "running variances must lie in"),
    ],
)
def test_numbers_out_of_their_range_are_refused(place: int, value: float, reason: str) -> None:
    blob = packed(drawn(5))
    blob = forged(blob, written(len(blob) - 8 - 40 + 4 * place, "f", value))
    with pytest.raises(UpdateRejected, match=reason):
        unpacked(blob)


@pytest.mark.parametrize(
    ("expected", "reason"),
    [
        ({"number": 6}, "expected 48 bytes of statistics of 6 channels, got 40"),
        ({"server_round": 8}, "are of round 7 and version 6, expected round 8 and version 6"),
        ({"version": 5}, "are of round 7 and version 6, expected round 7 and version 5"),
    ],
)
def test_statistics_of_another_model_or_question_are_refused(expected: dict[str, int], reason: str) -> None:
    with pytest.raises(UpdateRejected, match=reason):
        unpacked(packed(drawn(5)), **expected)


@given(st.integers(0, 120))
def test_a_truncated_blob_is_refused(length: int) -> None:
    blob = packed(drawn(5))
    if length < len(blob) - 8:
        with pytest.raises(UpdateRejected):
            unpacked(forged(blob, lambda body: body[:length]))


@given(st.integers(0, 40), st.floats(0, 1, width=32))
def test_an_accuracy_comes_with_them_where_it_is_asked_for(number: int, accuracy: float) -> None:
    blob = packed(drawn(number), accuracy)
    read = unpacked(blob, number, with_accuracy=True)
    assert read.accuracy == accuracy
    assert torch.equal(read.statistics.means, drawn(number).means)
    assert len(blob) == len(packed(drawn(0), 0.5)) - arrival_bytes(0) + arrival_bytes(number)
    with pytest.raises(UpdateRejected, match="the blob has no values section"):
        unpacked(blob, number)


@pytest.mark.parametrize("accuracy", [-0.1, 1.1])
def test_an_accuracy_is_a_share(accuracy: float) -> None:
    with pytest.raises(UpdateRejected, match=r"an accuracy must lie in \[0, 1\], got"):
        unpacked(packed(drawn(5), accuracy), with_accuracy=True)


def test_whoever_has_no_validation_example_says_so_by_what_is_no_number() -> None:
    found = unpacked(packed(drawn(5), math.nan), with_accuracy=True)
    assert found.accuracy is not None
    assert math.isnan(found.accuracy)
