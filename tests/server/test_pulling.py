"""Replies taken apart one by one: an odd one, a spoofed one or one that never comes costs its sender only."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from flwr.superlink.grid.http_grid import HttpGrid
from hypothesis import given
from hypothesis import strategies as st

from server.grids import StreamingGrid
from server.pulling import CarefulGrid, careful
from server.questions import Questions
from server.replies import blob_content, blob_of, error_line
from spatl.wire.blob import CLIENT_REFUSED

FRAME = '\n  File "a.py", line 1, in f\nValueError: the end'


class SuperLink:
    """What Flower's SuperLink holds for the ServerApp: announced replies, and those of their objects that have come."""

    def __init__(self) -> None:
        self.announced: list[tuple[Metadata, ObjectTree]] = []
        self.objects: dict[str, bytes] = {}
        self.forgotten: list[str] = []
        self.given: set[str] = set()

    def take(self, message: Message, *, told: Metadata | None = None, without: int = 0) -> None:
        """Take a client's reply; `told` is what it said of it to the SuperLink, `without` how many objects are late."""
        with_id(message)
        metadata = told or message.metadata
        metadata.__dict__["_message_id"] = message.object_id
        self.announced.append((metadata, get_object_tree(message)))
        contents = {name: each.deflate() for name, each in get_all_nested_objects(message).items()}
        self.objects |= dict(list(contents.items())[without:])
        self.late = dict(list(contents.items())[:without])

    def PullMessages(self, request):  # noqa: N802  (as Flower names it)
        """Announce what there is, once; of a question whose reply it has announced it knows nothing any more."""
        for question in self.given.intersection(request.message_ids):
            unknown = make_message(metadata(0, question=question, kind="system"), error=Error(3, "Message Unavailable"))
            self.take(unknown)
        ready, self.announced = self.announced, []
        self.given |= {told.reply_to_message_id for told, _ in ready}
        return PullAppMessagesResponse(
            messages_list=[message_to_proto(make_message(told, content=RecordDict())) for told, _ in ready],
            message_object_trees=[tree for _, tree in ready],
        )

    def PullObject(self, request):  # noqa: N802
        found = self.objects.get(request.object_id)
        return PullObjectResponse(
            object_found=True, object_available=found is not None, object_content=found if found is not None else b""
        )

    def ConfirmMessageReceived(self, request):  # noqa: N802
        self.forgotten.append(request.message_object_id)


def with_id(message: Message) -> None:
    message.metadata.__dict__["_message_id"] = message.object_id


def metadata(node: int = 7, *, question: str = "question", kind: str = "train", group: str = "3") -> Metadata:
    return Metadata(1, "", node, 1, question, group, 1.0, 100.0, kind)


def reply(content: RecordDict | None = None, **told) -> Message:
    return make_message(metadata(**told), content=blob_content(b"an update") if content is None else content)


@pytest.fixture
def superlink() -> SuperLink:
    return SuperLink()


@pytest.fixture
def flowers(superlink) -> SimpleNamespace:
    """Flower's own grid."""
    return SimpleNamespace(_runtime_client=superlink, node=Node(node_id=1), run=SimpleNamespace(run_id=1))


@pytest.fixture
def grid(flowers) -> CarefulGrid:
    return CarefulGrid(flowers)


def test_a_reply_comes_as_it_was_sent_and_is_forgotten_by_the_superlink(grid, superlink):
    superlink.take(reply())
    superlink.take(reply(node=8, question="another"))
    one, other = grid.pull_messages(["question", "another"])
    assert blob_of(one) == blob_of(other) == b"an update"
    assert (one.metadata.src_node_id, one.metadata.reply_to_message_id) == (7, "question")
    assert (other.metadata.src_node_id, other.metadata.reply_to_message_id) == (8, "another")
    assert superlink.forgotten == [one.metadata.message_id, other.metadata.message_id]


def test_a_reply_that_is_not_whole_yet_is_waited_for_and_not_asked_for_again(grid, superlink):
    """Its announcement and its objects come in calls of their own: a look between them is no loss of the reply."""
    superlink.take(reply(), without=2)
    late = superlink.late
    assert grid.pull_messages(["question"]) == []
    superlink.take(reply(blob_content(b"of another"), node=8, question="another"))
    (other,) = grid.pull_messages(["question", "another"])
    assert other.metadata.reply_to_message_id == "another"
    superlink.objects |= late
    (one,) = grid.pull_messages(["question"])
    assert blob_of(one) == b"an update"
    assert superlink.given == {"question", "another"}


def test_an_error_comes_as_it_was_sent(grid, superlink):
    superlink.take(make_message(metadata(), error=Error(101, "it diverged")))
    (got,) = grid.pull_messages(["question"])
    assert (got.error.code, got.error.reason) == (101, "it diverged")


def test_whose_a_reply_is_says_the_superlink_and_not_the_object_that_its_sender_wrote(grid, superlink):
    """The object says that it is node 9's, and answers what node 9 was asked."""
    superlink.take(reply(node=9, question="of another"), told=metadata(node=7))
    (got,) = grid.pull_messages(["question"])
    own = got.metadata
    assert (own.src_node_id, own.reply_to_message_id) == (7, "question")


def broken() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Objects that the SuperLink takes for valid, by their heads, and nobody can read."""
    divider = b"\x00"
    for name, head, body in (
        ("no message", b"ConfigRecord", b""),
        ("records that are none", b"RecordDict", b"{"),
        ("records of nothing", b"RecordDict", b'{"spatl": "0"}'),
        ("a message that is none", b"Message", b"\xff\xff\xff"),
        ("a message without content", b"Message", b""),
        ("a chunk", b"ArrayChunk", b"x"),
    ):
        yield name, head + b"  " + str(len(body)).encode() + divider + body


@pytest.mark.parametrize("content", [each for _, each in broken()], ids=[name for name, _ in broken()])
def test_objects_that_nobody_can_read_are_an_error_of_their_sender_and_the_others_come(grid, superlink, content):
    validate_object_content(content)  # the SuperLink takes it
    told = metadata()
    told.__dict__["_message_id"] = "root"
    superlink.announced.append((told, ObjectTree(object_id="root")))
    superlink.objects["root"] = content
    superlink.take(reply(node=8, question="another"))
    odd, good = grid.pull_messages(["question", "another"])
    assert odd.error.code == CLIENT_REFUSED
    assert odd.error.reason.startswith("its reply is no")
    assert odd.metadata.reply_to_message_id == "question"
    assert blob_of(good) == b"an update"


def test_a_reply_of_many_objects_is_refused_before_one_of_them_is_fetched(grid, superlink):
    superlink.take(reply(RecordDict({str(number): ConfigRecord({"n": number}) for number in range(9)})))
    superlink.PullObject = None
    (got,) = grid.pull_messages(["question"])
    assert got.error.reason == "its reply has more than 8 objects"
    assert len(superlink.forgotten) == 1


@pytest.mark.parametrize(
    "told", [{"kind": "query." + "x" * 100}, {"kind": "query.Späte"}, {"group": "3\n"}, {"group": "9" * 100}]
)
def test_a_reply_of_a_type_or_group_that_no_question_has_is_refused(grid, superlink, told):
    superlink.take(reply(**told))
    (got,) = grid.pull_messages(["question"])
    assert "no type or group" in got.error.reason


def test_a_reply_that_is_not_whole_yet_holds_nobody_up_and_one_that_never_is_ends(grid, flowers, superlink):
    superlink.take(reply(node=8, question="another"))
    superlink.take(reply(blob_content(b"late")), without=1)
    assert [each.metadata.src_node_id for each in grid.pull_messages(["question", "another"])] == [8]
    assert grid.pull_messages(["question"]) == []
    superlink.objects |= superlink.late
    assert [blob_of(each) for each in grid.pull_messages(["question"])] == [b"late"]
    hasty = CarefulGrid(flowers, patience_seconds=0.0)
    superlink.objects.clear()
    superlink.take(reply(question="a third"), without=3)
    (got,) = hasty.pull_messages(["a third"])
    assert got.error.code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE
    assert hasty.pull_messages([]) == []


values = st.one_of(st.integers(-(2**62), 2**62), st.floats(), st.text(max_size=5), st.binary(max_size=5), st.booleans())
records = (
    st.dictionaries(st.text(max_size=5), values, max_size=3).map(ConfigRecord)
    | st.dictionaries(st.text(max_size=5), st.floats(), max_size=3).map(MetricRecord)
    | st.just(ArrayRecord())
)


@pytest.mark.slow
@given(content=st.dictionaries(st.sampled_from(["spatl", "metrics", "x"]), records, max_size=3).map(RecordDict))
def test_any_records_come_through_or_are_refused(content):
    superlink = SuperLink()
    inner = SimpleNamespace(_runtime_client=superlink, node=Node(node_id=1), run=SimpleNamespace(run_id=1))
    superlink.take(reply(content))
    (got,) = CarefulGrid(inner).pull_messages(["question"])
    assert got.has_error() or set(got.content) == set(content)


def test_flowers_grid_over_http_is_pulled_with_care_and_any_other_stays_as_it_is():
    found = careful(HttpGrid.__new__(HttpGrid))
    assert isinstance(found, CarefulGrid)
    assert careful(found) is found


def test_a_client_answers_what_it_was_asked_and_nothing_else(grid, superlink):
    question = make_message(Metadata(1, "question", 1, 7, "", "3", 1.0, 100.0, "train"), content=RecordDict())
    questions = Questions([question], {7})
    for told, node in (
        ({}, 7), ({"kind": "evaluate"}, None), ({"group": "4"}, None), ({"node": 8}, None),
    ):  # fmt: skip
        superlink.given.clear()
        superlink.take(reply(**told))
        (got,) = grid.pull_messages(["question"])
        assert questions.node_of(got) == node


def test_flowers_streaming_over_it_sends_by_the_inner_grid(grid, flowers, superlink):
    flowers.push_messages = lambda messages: [each.metadata.message_id for each in messages]
    flowers.get_node_ids = lambda: [7]
    question = make_message(Metadata(1, "question", 1, 7, "", "3", 1.0, 100.0, "train"), content=RecordDict())
    superlink.take(reply())
    (got,) = StreamingGrid(grid, poll_seconds=0.0).send_and_receive([question], timeout=5.0)
    assert blob_of(got) == b"an update"


def test_a_reason_of_ten_megabytes_is_read_at_its_ends():
    long = error_line(Error(2, "Traceback (most recent call last)\n" + "x" * 10_000_000 + FRAME))
    assert "the end" in long
    assert len(error_line(Error(100, "y" * 10_000_000))) == 500
