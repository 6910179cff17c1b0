"""Findings in bytes: what is sent arrives to the last bit, in a known length, and what is odd is refused."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatl.errors import UpdateRejected
from spatl.saliency.findings import Findings, fault_of
from spatl.wire.blob import section_bytes, with_digest
from spatl.wire.codecs import CODECS
from spatl.wire.findings import FindingsShape, pack_findings, unpack_findings
from spatl.wire.varints import varint
from tests.support.findings import drawn_findings, same_findings
from tests.support.layouts import interleaved_layout
from tests.support.messages import forged, written

CODEC, LAYOUT = CODECS["float32"], interleaved_layout([(3, 2)])
SHAPE = FindingsShape(num_filters=5, num_classes=3, num_features=4)
FOUND = drawn_findings(1)
HEADERS = 12 + 1 + 1  # and round and version
TABLE = HEADERS + 4 + 1 + 1 + 1 + 1  # four rows, whose lengths below 128 take a byte each


def packed(findings: Findings) -> bytes:
    return pack_findings(findings, LAYOUT, CODEC, server_round=7, version=6)


def unpacked(blob: bytes, shape: FindingsShape = SHAPE, server_round: int = 7, version: int = 6) -> Findings:
    return unpack_findings(blob, LAYOUT, CODEC, server_round=server_round, version=version, shape=shape)


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 12), st.integers(0, 12), st.integers(1, 60))
def test_what_is_packed_is_read_again_to_the_last_bit(seed: int, filters: int, classes: int, read: int, n: int) -> None:
    found = drawn_findings(seed, num_filters=filters, num_classes=classes, num_features=read, num_examples=n)
    assert same_findings(unpacked(packed(found), FindingsShape(filters, classes, read)), found)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 12))
def test_the_length_follows_from_the_network(filters: int, classes: int, read: int) -> None:
    """16 bytes a filter of moments, 32 a class, 4 for each number of a class profile and of a prototype."""
    blob = packed(drawn_findings(1, num_filters=filters, num_classes=classes, num_features=read))
    length = 16 * filters + 32 * classes + 4 * classes * (filters + read)
    lengths = (16 * filters, 32 * classes, 4 * classes * filters, 4 * classes * read)
    assert len(blob) == HEADERS + sum(1 + len(varint(each)) for each in lengths) + length + 8
    assert section_bytes(blob) == {"values": length, "indices": 0, "control": 0}


@pytest.mark.parametrize(
    ("form", "place", "value", "reason"),
    [
        ("d", 0, float("nan"), "the means must be finite"),
        ("d", 0, -1.0, "the means must not be below 0"),
        ("d", 8 * 5, -1e-9, "the squares must not be below 0"),
        ("d", 8 * 7, 1e20, "the profiles deviate further from their means"),
        ("q", 80, -1, "the counts must not be below 0"),
        ("q", 80, 100, "the profiles of the classes do not have the mean"),
        ("q", 80 + 8, (1 << 63) - 1, "the counts must be finite and at most"),
        ("q", 80 + 24, 99, "more correct predictions than examples"),
        ("q", 80 + 48, -(1 << 63), "the labels must not be below 0"),
        ("d", 80 + 72, float("-inf"), "the losses must be finite"),
        ("d", 80 + 80, -1.0, "the losses must not be below 0"),
        ("f", 80 + 96, float("nan"), "the class profiles must be finite"),
        ("f", 80 + 100, 1e9, "the profiles of the classes do not have the mean"),
        ("f", 80 + 96 + 60, float("inf"), "the prototypes must be finite"),
    ],
)
def test_numbers_that_cannot_be_are_refused(form: str, place: int, value: float, reason: str) -> None:
    blob = forged(packed(FOUND), written(TABLE + place, form, value))
    with pytest.raises(UpdateRejected, match=reason):
        unpacked(blob)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (FindingsShape(6, 3, 4), "expected 96 bytes of findings in section 11, got 80"),
        (FindingsShape(5, 2, 4), "expected 64 bytes of findings in section 12, got 96"),
        (FindingsShape(5, 3, 0), "expected 0 bytes of findings in section 14, got 48"),
    ],
)
def test_findings_of_another_network_are_refused(shape: FindingsShape, reason: str) -> None:
    with pytest.raises(UpdateRejected, match=reason):
        unpacked(packed(FOUND), shape)


def test_another_round_or_version_is_refused() -> None:
    for server_round, version in ((8, 6), (7, 5)):
        with pytest.raises(UpdateRejected, match="the findings are of round 7 and version 6, expected round"):
            unpacked(packed(FOUND), server_round=server_round, version=version)


@given(st.data())
def test_changed_bytes_are_findings_or_refused(data: st.DataObject) -> None:
    """Whatever is changed, cut or added: one error with a reason, or numbers that have no fault."""
    blob = bytearray(packed(FOUND)[:-8])
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(blob)) | st.none())
    more = data.draw(st.binary(max_size=20))
    with suppress(UpdateRejected):
        found = unpacked(with_digest(bytes(blob[:cut]), more))
        assert fault_of(found, num_filters=5, num_classes=3) is None
