"""Registrations and replies that are giant or odd: named and left out with their sender, and the others go on."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from server.grids import InProcessGrid
from spatl.data.own import LARGEST_NUM_CLASSES, Description, agree
from spatl.errors import DataError, UpdateRejected, printable
from spatl.json_files import read_json
from spatl.runs.records import read_lines
from spatl.wire.blob import BLOB, RECORD
from spatl.wire.registration import RegistrationAnswer, with_check
from tests.support.federations import registered
from tests.support.own_data import own_config, serve_devices

NOT_PRINTABLE = "\x1b]0;title\x07\x1b[2Jgone\u202e"


def answering(kind: str, change: Callable[[Message], Message]) -> type[InProcessGrid]:
    """A grid on which client 1 answers one kind of question as `change` has it."""

    class Answering(InProcessGrid):
        def pull_messages(self, message_ids):
            for reply in super().pull_messages(message_ids):
                own = reply.metadata
                yield change(reply) if (own.src_node_id, own.message_type) == (3, kind) else reply

    return Answering


def saying(reply: Message, content: RecordDict | None = None, error: Error | None = None) -> Message:
    """A reply with another content."""
    if content is not None:
        reply.content = content
        return reply
    other = Message(error, reply_to=Message(RecordDict(), dst_node_id=3, message_type=reply.metadata.message_type))
    other.__dict__["_metadata"] = reply.metadata
    return other


def telling(fields: dict) -> Callable[[Message], Message]:
    """A change of a registration to these fields, with a digest that is right."""

    def change(reply: Message) -> Message:
        return saying(reply, RecordDict({RECORD: ConfigRecord(with_check(fields))}))

    return change


ODD: dict[str, tuple[Callable[[Message], Message], str]] = {
    "nothing": (lambda reply: saying(reply, RecordDict()), "lacks 'spatl'"),
    "other kinds of records": (
        lambda reply: saying(reply, RecordDict({RECORD: MetricRecord({})})), "lacks",
    ),
    "no digest": (
        lambda reply: saying(reply, RecordDict({RECORD: ConfigRecord({"partition-id": 1})})), "altered on its way",
    ),
    "a list for a partition": (telling({"partition-id": [1] * 1000}), "says it holds partition [1, 1"),
    "a fraction for a partition": (telling({"partition-id": 1.0}), "says it holds partition 1.0"),
    "not a number of examples": (
        telling({"partition-id": 1, "num-examples": float("nan")}), "nan training examples",
    ),
    "2^40 examples": (telling({"partition-id": 1, "num-examples": 1 << 40}), "training examples"),
    "a text for a digest": (telling({"partition-id": 1, "num-examples": 9, "initial": "x"}), "other than bytes"),
    "a digest of a megabyte": (
        telling({"partition-id": 1, "num-examples": 9, "data": bytes(1 << 20)}), "1048576 bytes of digest, at most",
    ),
    "a refusal of ten megabytes": (
        telling({"partition-id": 1, "refused": NOT_PRINTABLE + "x" * 10_000_000}), "]0;title??[2Jgone?xxx",
    ),
    "an error of ten megabytes": (
        lambda reply: saying(reply, error=Error(100, NOT_PRINTABLE + "y" * 10_000_000)), "]0;title??[2Jgone?yyy",
    ),
    "another's partition": (
        lambda reply: saying(reply, registered(reply.content, client=2)), "the key of client 1 says",
    ),
    "no JSON": (
        lambda reply: saying(reply, registered(reply.content, description=b"[" * 100_000)), "description of data",
    ),
    "a class with a name that moves the cursor": (
        lambda reply: saying(
            reply, registered(reply.content, description=reply_with(reply, classes=["0", NOT_PRINTABLE]))
        ), "no control characters",
    ),
}  # fmt: skip


def reply_with(reply: Message, **values: object) -> bytes:
    """The description in a reply with other values."""
    description = reply.content.config_records[RECORD]["description"]
    assert isinstance(description, bytes)
    told = Description.from_bytes(description)
    return Description(**{**vars(told), **values}).to_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("change", ODD)
def test_an_odd_registration_costs_its_device_only(devices, caplog, change):
    odd, reason = ODD[change]
    serve_devices(own_config(rounds=1), devices, grid_type=answering("query", odd))
    absent = read_json(devices / "run" / "summary.json")["absent"]
    assert list(absent) == ["1"]
    assert reason in absent["1"]
    assert len(absent["1"]) < 2000
    said = [line["message"] for line in read_lines(devices / "run" / "log.jsonl")]
    assert all(printable(line) == line and len(line) < 3000 for line in said)
    assert [row["participants"] for row in read_lines(devices / "run" / "history.jsonl")] == [2]


def many_records(reply: Message) -> Message:
    return saying(reply, RecordDict({str(number): MetricRecord({"x": float("nan")}) for number in range(1000)}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda reply: saying(reply, error=Error(103, NOT_PRINTABLE + "y" * 10_000_000)), "]0;title??[2Jgone?"),
        (many_records, "no spatl record"),
        (lambda reply: saying(reply, RecordDict({RECORD: ConfigRecord({BLOB: ["x"]})})), "no spatl record"),
        (lambda reply: saying(reply, RecordDict({RECORD: ConfigRecord({BLOB: bytes(20 << 20)})})), "not a SPATL blob"),
    ],
    ids=["an error of ten megabytes", "a thousand records", "a list for a blob", "20 megabytes"],
)  # fmt: skip
def test_an_odd_reply_costs_its_client_the_round_only(devices, change, reason):
    serve_devices(own_config(rounds=1), devices, grid_type=answering("train", change))
    (row,) = read_lines(devices / "run" / "history.jsonl")
    ((client, told),) = [(each["client"], each["reason"]) for each in row["rejections"]]
    assert (client, row["participants"]) == (1, 2)
    assert reason in told
    assert len(told) < 1000
    assert printable(told) == told


values = st.one_of(
    st.integers(-(2**62), 2**62), st.floats(), st.text(max_size=9), st.binary(max_size=90), st.booleans(),
    st.lists(st.integers(-5, 5), max_size=3), st.lists(st.floats(), max_size=3),
)  # fmt: skip
keys = st.sampled_from(
    [
        "partition-id", "num-examples", "fingerprint", "initial", "rest", BLOB, "data", "description", "refused",
        "check", "x",
    ]
)  # fmt: skip


@pytest.mark.slow
@given(st.dictionaries(keys, values))
def test_any_fields_are_an_answer_or_refused(fields):
    fields = with_check(fields)
    try:
        client = RegistrationAnswer.client_of(fields)
        RegistrationAnswer.of_fields(client, fields)
    except (KeyError, UpdateRejected):
        return


def description(classes) -> Description:
    return Description(10, tuple(classes), (1, 8, 8), (0.0,), (1.0,), "channel", 0)


def test_who_has_ten_thousand_classes_of_its_own_is_left_out_and_not_the_others():
    junk = [f"junk-{number}" for number in range(LARGEST_NUM_CLASSES)]
    agreement, misfits = agree({0: description("ab"), 1: description(junk), 2: description("bc")})
    assert agreement.classes == ("a", "b", "c")
    assert list(misfits) == [1]
    assert "at most 10000 can be, and 10000 are its alone" in misfits[1]


def test_a_scale_is_nobodys_alone_however_many_examples_it_says_it_has():
    """By hand: 10 examples of mean 0 and 10 that count of mean 2, each with deviation 1: mean 1, deviation sqrt 2."""
    honest = replace(description("ab"), squares=(640.0,))
    liar = replace(honest, num_examples=10**9, means=(2.0,), squares=(64e9,))
    agreement, _ = agree({0: honest, 1: liar}, counts={1: 10})
    assert agreement.means == pytest.approx((1.0,))
    assert agreement.deviations == pytest.approx((2**0.5,))
    alike, _ = agree({0: honest, 1: honest})
    assert alike == agree({0: honest, 1: honest}, counts={})[0]


def test_a_name_of_a_class_moves_no_cursor():
    for name in ("a\x1b[2J", "a\rb", "a\x9b", "a\u202e"):
        with pytest.raises(DataError, match="must have no control characters"):
            Description.from_bytes(description(["a", name]).to_bytes())
    assert Description.from_bytes(description(["é", "日本"]).to_bytes()).classes == ("é", "日本")
