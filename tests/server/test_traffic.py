"""What a message costs on a deployment's socket follows from its records, not from what Flower draws."""

import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from server import traffic
from server.replies import blob_content
from server.traffic import message_traffic
from spatl.wire.blob import BLOB, RECORD
from tests.support.flower import record_bytes


def content(length: int) -> RecordDict:
    return RecordDict({"config": ConfigRecord({"blob": bytes(length)})})


def test_a_message_of_three_objects_by_hand():
    """A record dict with one record, and Flower's message object around it: three objects.

    Up, to fetch it: node = 2 + 11 bytes (tag and length; tag and ten bytes of id), so 13 with PullMessages; a request
    per object and the confirmation: 13 + 11 (run) + 66 (id) = 90 each. 13 + 4 * 90 = 373.
    Down, to answer a reply: PushMessages with reconnect 2 + 2, one result 2 + 66 (its value is zero, written out as two
    more), three ids of 66, the session's 2 + 36; PushObject 2 each. 4 + 70 + 198 + 38 + 3 * 2 = 316.
    """
    message = {"message_type": "train", "group_id": "1"}
    assert message_traffic(content(100), direction="downlink", **message).opposite == 373
    assert message_traffic(content(100), direction="uplink", **message).opposite == 316


def test_a_round_of_as_many_digits_is_counted_without_serialising_again(monkeypatch):
    """A blob of 100 MB takes seconds; of a round's number the length counts, of two digits one byte more, twice."""
    serialised = []
    own = traffic.get_object_tree
    monkeypatch.setattr(traffic, "get_object_tree", lambda message: serialised.append(message) or own(message))
    blob = blob_content(bytes(1_234_567))
    counts = [
        message_traffic(blob, direction="uplink", message_type="train", group_id=group) for group in ("3", "7", "12")
    ]
    assert len(serialised) <= 2
    assert counts[0] == counts[1]
    assert counts[2].num_bytes == counts[0].num_bytes + 2  # it stands in the message, and in the object that it is


def test_the_envelope_depends_on_the_objects_and_not_on_their_length():
    """Seven-bit lengths: within one size class a longer blob costs only itself."""
    for direction in ("downlink", "uplink"):
        small, large = (
            message_traffic(content(length), direction=direction, message_type="train", group_id="1")
            for length in (20_000, 90_000)
        )
        assert large.opposite == small.opposite
        envelopes = [
            traffic.num_bytes - record_bytes(content(length)) for traffic, length in ((small, 20_000), (large, 90_000))
        ]
        assert 0 <= envelopes[1] - envelopes[0] <= 2
        assert 400 < envelopes[0] < 1200


@pytest.mark.slow
def test_a_blob_alone_counts_as_if_it_were_serialised():
    """What is counted by length is what the serialised message has: names as long, which nobody knows, are counted so.

    The lengths lie on either side of each at which a length, in sevens or in decimals, is written with a digit more.
    """
    record, blob = RECORD[::-1], BLOB[::-1]
    assert (record, blob) != (RECORD, BLOB)
    edges = [10**place for place in range(6)] + [1 << bits for bits in (7, 14, 21)]
    lengths = {edge + offset for edge in edges for offset in (-1100, -700, -300, -80, -1, 0, 1, 80)}
    for length in sorted(each for each in lengths if each >= 0):
        known, unknown = (
            RecordDict({names[0]: ConfigRecord({names[1]: bytes(length)})})
            for names in ((RECORD, BLOB), (record, blob))
        )
        for direction in ("downlink", "uplink"):
            counted, serialised = (
                message_traffic(each, direction=direction, message_type="train", group_id="17")
                for each in (known, unknown)
            )
            assert counted == serialised, (direction, length)


def test_messages_whose_values_are_as_long_cost_the_same_and_others_do_not():
    """Of single values nothing counts but their length: what is remembered is what a message of a list beside it costs.

    A list is serialised each time. Beside it, each pair of values differs by what the values themselves differ by.
    """

    def counted(value: float | str | bytes, *, kind: type = ConfigRecord, listed: bool = False) -> int:
        records = {"one": kind({"name": value}), **({"list": ConfigRecord({"list": [1, 2]})} if listed else {})}
        return message_traffic(RecordDict(records), direction="uplink", message_type="query", group_id="1").num_bytes

    numbers = [0, 1, 2, 63, 64, 127, 128, 8191, 8192, 16384, 2**40, -1, -2, -64, -65, -(2**40)]
    texts = ["", "a", "ab" * 70, "\u00e9" * 70]
    for kind, values in ((MetricRecord, [*numbers, 0.0, 0.5]), (ConfigRecord, [*numbers, *texts, b"", b"a" * 200])):
        for value in [*values, *reversed(values)]:  # remembered the second time
            found, least = counted(value, kind=kind), counted(values[0], kind=kind)
            whole, part = counted(value, kind=kind, listed=True), counted(values[0], kind=kind, listed=True)
            assert abs((found - least) - (whole - part)) <= 1, value  # a length of the message around them may grow
