"""A digest over all that travels, both ways: what is altered on its way is refused before anything is believed."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatl.channels.selection import select_all
from spatl.errors import UpdateRejected
from spatl.wire.blob import section_bytes
from spatl.wire.codecs import CODECS
from spatl.wire.registration import RegistrationAnswer, RegistrationQuestion
from spatl.wire.update import unpack_update
from tests.support.blobs import KINDS, Sent
from tests.support.messages import LAYOUT, forged, packed, unpack, written


@cache
def sent(kind: str) -> list[Sent]:
    """All blobs of a kind."""
    return list(KINDS[kind]())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_bit_that_flips_at_any_place_of_any_blob_is_noticed(kind, data):
    each = data.draw(st.sampled_from(sent(kind)), label="blob")
    each.take(each.blob)
    altered = bytearray(each.blob)
    altered[data.draw(st.integers(0, len(altered) - 1), label="byte")] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    with pytest.raises(UpdateRejected, match=r"not a SPATL blob|blob format version|altered on its way"):
        each.take(bytes(altered))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_whatever_is_cut_off_added_or_put_elsewhere_is_noticed(kind, data):
    each = data.draw(st.sampled_from(sent(kind)), label="blob")
    one, other = sorted(data.draw(st.integers(0, len(each.blob)), label="place") for _ in range(2))
    for altered in (
        each.blob[:one] + each.blob[other:],
        each.blob[:one] + data.draw(st.binary(max_size=9), label="more") + each.blob[other:],
        each.blob[other:] + each.blob[:one],
        each.blob[:one] + each.blob[other:] + each.blob[one:other],
    ):
        if altered != each.blob:
            with pytest.raises(UpdateRejected):
                each.take(altered)


@pytest.mark.parametrize(
    ("place", "form", "value"),
    [(12, "B", 6), (8, "4s", b"ones"), (13, "B", 4), (14, "B", 9), (15, "B", 4), (16, "8s", b"otherone")],
)
def test_a_download_of_another_round_version_or_model_is_noticed_as_altered(place, form, value):
    """Its round, fingerprint, versions, acknowledged round and the encoder's check: what a client acts upon."""
    for each in sent("downloads"):
        with pytest.raises(UpdateRejected, match="altered on its way"):
            each.take(written(place, form, value)(each.blob))


def test_a_digest_that_is_made_anew_hides_nothing_that_the_other_checks_see():
    blob, _ = packed([True] * LAYOUT.num_channels)
    assert forged(blob, bytes) == blob
    with pytest.raises(UpdateRejected, match="answers round 7"):
        unpack(forged(blob, written(12, "B", 7)))


def test_the_format_before_is_refused_by_its_number_and_not_as_altered():
    blob, _ = packed([True] * LAYOUT.num_channels)
    with pytest.raises(UpdateRejected, match="format version 4, expected 5"):
        unpack(written(4, "B", 4)(blob))


def test_the_digest_counts_as_overhead():
    blob, update = packed([True] * LAYOUT.num_channels)
    sizes = section_bytes(blob)
    assert sizes == {"values": 4 * len(update.values), "indices": 0, "control": 0}
    rest = len(blob) - sum(sizes.values())
    assert rest == 12 + 1 + 1 + 8 + (2 + 2 + 3) + 39 + 8
    seen = unpack_update(blob, LAYOUT, CODECS["float32"], server_round=1, base_version=0)
    assert seen.selection.mask.equal(select_all(LAYOUT).mask)


ANSWERS = [
    RegistrationAnswer(3, 100, fingerprint=b"layout", initial=b"initial", rest=b"rest", saliency=bytes(8)),
    RegistrationAnswer(0, 1, description=b'{"classes": []}'),
    RegistrationAnswer(1, refused="no data"),
]


@given(st.sampled_from(ANSWERS), st.data())
def test_what_a_client_registers_with_is_noticed_when_it_is_altered(answer, data):
    fields = answer.fields()
    assert RegistrationAnswer.client_of(fields) == answer.client
    assert RegistrationAnswer.of_fields(answer.client, fields) == answer
    key = data.draw(st.sampled_from([*fields]))
    value = fields[key]
    others = {int: st.integers(0, 2**40), bytes: st.binary(max_size=20), str: st.text(max_size=20)}[type(value)]
    other = data.draw(others.filter(lambda drawn: drawn != value))
    fields[key] = other
    with pytest.raises(UpdateRejected, match="altered on its way"):
        RegistrationAnswer.client_of(fields)


def test_a_field_of_a_registration_that_is_missing_is_noticed_and_so_is_a_digest():
    for answer in ANSWERS:
        for key in answer.fields().keys() - {"partition-id"}:
            fields = {name: value for name, value in answer.fields().items() if name != key}
            with pytest.raises(UpdateRejected, match="altered on its way"):
                RegistrationAnswer.client_of(fields)


def test_what_the_clients_have_agreed_on_is_noticed_when_it_is_altered():
    fields = RegistrationQuestion(b"layout", '{"mean": [0.5]}').fields()
    assert RegistrationQuestion.of_fields(fields).agreed == '{"mean": [0.5]}'
    with pytest.raises(UpdateRejected, match="altered on its way"):
        RegistrationQuestion.of_fields(fields | {"agreed": '{"mean": [0.6]}'})
