"""Who is to blame for a reply that does not come: told by the message, because Flower's errors name no client."""

import json

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.constant import ErrorCode

from server.grids import SERVER_NODE_ID, InProcessGrid, StreamingGrid
from server.questions import Questions, is_lost
from spatl.runs.log import logged_to
from spatl.runs.records import read_lines
from spatl.runs.status import read_status
from tests.support.federations import run_tiny, tiny_config
from tests.support.flower import echo, flowers_error


class Gone(InProcessGrid):
    """Client 2 goes before round 2: Flower answers for it. Client 4 never answers there."""

    says_which = True

    def send_and_receive(self, messages, *, timeout=None):
        for message, message_id in zip(messages, self.push_messages(messages), strict=True):
            client, asked = message.metadata.dst_node_id - 2, message.metadata
            if (asked.group_id, asked.message_type) == ("2", "train") and client == 2:
                yield flowers_error(message, says_which=self.says_which)
                yield flowers_error(message, says_which=self.says_which)
            elif (asked.group_id, asked.message_type, client) != ("2", "train", 4):
                yield from self.pull_messages([message_id])


class Vague(Gone):
    says_which = False


@pytest.mark.slow
@pytest.mark.parametrize("grid", [Gone, Vague])
def test_a_client_that_is_gone_is_missing_by_name_and_neither_late_nor_refused(tmp_path, grid):
    with logged_to(tmp_path / "log.jsonl"):
        run_tiny(tiny_config(rounds=2, method="fedavg"), tmp_path, grid_type=grid)
    _, row = read_lines(tmp_path / "history.jsonl")
    assert (row["participants"], row["missing"], row["rejected"], row["late"]) == (3, 2, 0, 0)
    assert (row["away"], row["errors"], row["asked_again"], row["duplicates"]) == (grid.says_which, 0, 0, 0)
    missed = [(each["round"], each["client"]) for each in read_lines(tmp_path / "clients.jsonl") if each["missed"]]
    assert missed == [(2, 2), (2, 4)]
    assert [client.missed for client in read_status(tmp_path).clients] == [0, 0, 1, 0, 1]
    lines = read_lines(tmp_path / "log.jsonl")
    said = {line["client"]: line["message"] for line in lines if "no answer of" in line["message"]}
    assert said[2] == "round 2: no answer of client 2: Error: Node Unavailable"
    assert said[4].startswith("round 2: no answer of client 4: ")
    assert not any("late" in line["message"] for line in lines)


class Absent(InProcessGrid):
    """Client 2 is not connected when round 2 begins, so that nothing reaches it; client 3 goes while it trains."""

    def get_node_ids(self):
        return [node for node in super().get_node_ids() if node != 4 or self._trained != 1]

    _trained = 0

    def send_and_receive(self, messages, *, timeout=None):
        for message, message_id in zip(messages, self.push_messages(messages), strict=True):
            asked, client = message.metadata, message.metadata.dst_node_id - 2
            if (asked.group_id, asked.message_type) == ("2", "train") and client in (2, 3):
                yield flowers_error(message)
            else:
                yield from self.pull_messages([message_id])
        self._trained += any(message.metadata.message_type == "train" for message in messages)


@pytest.mark.slow
def test_the_ledger_holds_what_was_taken_and_not_what_nobody_fetched(tmp_path):
    run_tiny(tiny_config(rounds=2, method="fedavg"), tmp_path, grid_type=Absent)
    rows = [row for row in read_lines(tmp_path / "ledger.jsonl") if (row["round"], row["phase"]) == (2, "train")]
    assert [row["client"] for row in rows if row["direction"] == "downlink"] == [0, 1, 3, 4]
    assert [row["client"] for row in rows if row["direction"] == "uplink"] == [0, 1, 4]
    absent = [row for row in read_lines(tmp_path / "clients.jsonl") if (row["round"], row["client"]) == (2, 2)]
    assert [(row["missed"], row["away"]) for row in absent] == [(True, True)]
    _, row = read_lines(tmp_path / "history.jsonl")
    of_all = [each for each in read_lines(tmp_path / "ledger.jsonl") if each["round"] == 2]
    assert row["downlink_bytes"] == sum(
        each["bytes"] if each["direction"] == "downlink" else each["opposite"] for each in of_all
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["missing"], summary["away"], read_status(tmp_path).mishaps["away"]) == (2, 2, 2)


def questions_to(*nodes):
    messages = [Message(RecordDict(), dst_node_id=node, message_type="train", group_id="3") for node in nodes]
    return InProcessGrid(echo, num_clients=3, run_config={}), messages


def test_an_error_of_flowers_own_is_about_the_node_that_was_asked():
    grid, messages = questions_to(2, 3)
    questions = Questions(messages, {2})
    grid.push_messages(messages)
    errors = [flowers_error(message) for message in messages]
    assert [questions.node_of(error) for error in errors] == [2, 3]
    assert all(is_lost(error) for error in errors)
    assert questions.node_of(flowers_error(messages[0], says_which=False)) is None
    assert [questions.was_taken(node, answered=False) for node in (2, 3)] == [True, False]
    assert questions.was_taken(3, answered=True)


def test_what_a_client_raised_is_no_lost_message():
    grid, messages = questions_to(2)
    grid.push_messages(messages)
    assert not is_lost(Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason="x"), reply_to=messages[0]))
    assert not is_lost(Message(RecordDict(), reply_to=messages[0]))


class Vanishing(InProcessGrid):
    """Nodes 3 and 4 go; one error stands for both and says of neither that it is meant, again and again."""

    def get_node_ids(self):
        return [2]

    def pull_messages(self, message_ids):
        for message_id in message_ids:
            if self.queue[message_id].metadata.dst_node_id == 2:
                return super().pull_messages([message_id])
        return [flowers_error(self.queue[message_id], says_which=False)]


def test_one_error_for_two_lost_messages_ends_the_waiting_for_both():
    _, messages = questions_to(2, 3, 4)
    grid = StreamingGrid(Vanishing(echo, num_clients=3, run_config={}), poll_seconds=0.0)
    questions = Questions(messages, {2, 3, 4})
    replies = list(grid.send_and_receive(messages, timeout=60.0))
    assert [questions.node_of(reply) for reply in replies] == [2, 3]


class Refusing(InProcessGrid):
    """A SuperLink takes no message to a node that never was there."""

    def push_messages(self, messages):
        return [
            message_id if message.metadata.dst_node_id != 3 else ""
            for message, message_id in zip(messages, super().push_messages(messages), strict=True)
        ]


def test_a_message_that_the_superlink_refuses_is_not_waited_for_and_reached_nobody():
    _, messages = questions_to(2, 3)
    questions = Questions(messages, {2, 3})
    grid = StreamingGrid(Refusing(echo, num_clients=3, run_config={}), poll_seconds=0.0)
    assert len(list(grid.send_and_receive(messages, timeout=60.0))) == 1
    assert [questions.was_taken(node, answered=False) for node in (2, 3)] == [True, False]


def test_a_client_answers_for_itself_alone():
    """Node 3 says that its reply is to the question of node 2."""
    question = Message(RecordDict(), dst_node_id=2, message_type="train", group_id="1")
    question.metadata.__dict__["_message_id"] = "of-2"
    questions = Questions([question], {2, 3})

    def reply_from(node):
        metadata = Metadata(
            run_id=1, message_id="reply", src_node_id=node, dst_node_id=SERVER_NODE_ID, reply_to_message_id="of-2",
            group_id="1", created_at=1.0, ttl=1.0, message_type="train",
        )  # fmt: skip
        return make_message(metadata=metadata, content=RecordDict())

    assert [questions.node_of(reply_from(node)) for node in (2, 3, SERVER_NODE_ID)] == [2, None, 2]
