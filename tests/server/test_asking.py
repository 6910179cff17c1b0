"""A message that is lost on its way, either way, is asked for again: the round ends in time, the same as ever."""

import json
from collections import Counter

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode

import server.grids
from server.grids import InProcessGrid, StreamingGrid
from spatl.runs.records import read_lines
from spatl.seeding import numpy_generator
from spatl.wire.blob import CLIENT_BUSY
from tests.support.federations import fingerprints, tiny_config
from tests.support.flower import echo, flowers_error
from tests.support.lossy import WORK_SECONDS, Clock, losing_one, serve_over
from tests.support.own_data import check_devices_control

CONFIG = tiny_config(
    rounds=3, partition={"name": "iid", "num_clients": 3}, model={"name": "resnet8", "options": {"width": 0.25}},
    training={"local_steps": 1, "batch_norm": "aggregated"}, wire={"uplink": "adaptive", "downlink": "adaptive"},
    report={"split": "validation", "findings": "end"}, server={"round_timeout_seconds": 1000.0},
)  # fmt: skip
ASKED = [
    ("query", "1"), ("train", "1"), ("train", "2"), ("train", "3"), ("query.statistics", "3"),
    ("query.findings", "3"), ("evaluate", "3"),
]  # fmt: skip


@pytest.fixture(scope="module")
def run_of_all_messages(tmp_path_factory):
    """A run in which no message is lost, and how long it takes."""
    base, clock = tmp_path_factory.mktemp("undisturbed"), Clock()
    with pytest.MonkeyPatch.context() as patch:
        serve_over(CONFIG, base, clock, loses=lambda way, client, message: False, patch=patch)
    return base, clock.now


def ledger(base, *, direction=None):
    rows = read_lines(base / "run" / "ledger.jsonl")
    return sorted(json.dumps(row) for row in rows if direction in (None, row["direction"]))


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["downlink", "uplink"])
@pytest.mark.parametrize(("kind", "group"), ASKED)
def test_any_single_lost_message_costs_twice_the_round_at_most_and_nothing_else(
    tmp_path, monkeypatch, run_of_all_messages, direction, kind, group
):
    """The same encoder after each round and the same accuracies; the ledger holds the question once more."""
    base, seconds = run_of_all_messages
    clock = Clock()
    summary, grid = serve_over(CONFIG, tmp_path, clock, loses=losing_one(direction, 1, kind, group), patch=monkeypatch)
    assert clock.now - seconds <= 2 * WORK_SECONDS
    assert fingerprints(tmp_path / "run") == fingerprints(base / "run")
    assert summary["clients"] == json.loads((base / "run" / "summary.json").read_text())["clients"]
    assert summary["missing"] == summary["rejected"] == 0
    more = ledger(tmp_path, direction="downlink")
    (of_the_question,) = [
        row for row in map(json.loads, ledger(base, direction="downlink"))
        if (row["phase"], row["client"]) == (kind, 1) and str(row["round"]) == group
    ]  # fmt: skip
    more.remove(json.dumps(of_the_question))
    assert more == ledger(base, direction="downlink")
    sent = [[row["phase"] for row in map(json.loads, ledger(each, direction="uplink"))] for each in (tmp_path, base)]
    assert sorted(sent[0]) == sorted(sent[1])
    assert grid.asked.count((1, kind, group)) == (1 if direction == "downlink" else 2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_is_lost_up_to_three_times_changes_no_round_and_no_control_variate(tmp_path, monkeypatch, seed):
    """A third of all messages, either way; c is still the weighted sum of the c_i that lie on the devices."""
    config = tiny_config(
        method="spatl", partition={"name": "iid", "num_clients": 3}, selection={"selector": "update"},
        wire={"uplink": "adaptive", "downlink": "adaptive"}, server={"round_timeout_seconds": 1000.0},
    )  # fmt: skip
    draw, times = numpy_generator(seed, "losses"), Counter()

    def loses(way: str, client: int, message: Message) -> bool:
        asked = client, message.metadata.message_type, message.metadata.group_id
        lost = times[asked] < 3 and bool(draw.random() < 1 / 3)
        times[asked] += lost
        return lost

    whole, _ = serve_over(config, tmp_path / "whole", Clock(), loses=lambda *_: False, patch=monkeypatch)
    lossy, _ = serve_over(config, tmp_path / "lossy", Clock(), loses=loses, patch=monkeypatch)
    assert times.total() >= 8
    assert fingerprints(tmp_path / "lossy" / "run") == fingerprints(tmp_path / "whole" / "run")
    assert lossy["clients"] == whole["clients"]
    numbers = {row["client"]: row["num_examples"] for row in read_lines(tmp_path / "lossy" / "run" / "clients.jsonl")}
    for base in ("whole", "lossy"):
        check_devices_control(
            tmp_path / base, config, numbers, states=[tmp_path / base / f"device-{each}" / "tiny" for each in range(3)]
        )


class Scripted(InProcessGrid):
    """Each node answers each message after so many seconds of its script, or with an error of Flower's or its own."""

    def __init__(self, clock, scripts):
        super().__init__(echo, num_clients=len(scripts), run_config={})
        self._clock, self._scripts = (
            clock,
            {node: list(each) for node, each in zip(self.contexts, scripts, strict=True)},
        )
        self._since, self.pushed = {}, []
        self.away = {}

    def get_node_ids(self):
        spans = {node: self.away.get(node, (0.0, 0.0)) for node in self.contexts}
        return [node for node, (since, until) in spans.items() if not since <= self._clock.now < until]

    def push_messages(self, messages):
        ids = list(super().push_messages(messages))
        for message, message_id in zip(messages, ids, strict=True):
            node = message.metadata.dst_node_id
            self.pushed.append((node, self._clock.now))
            self._since[message_id] = self._clock.now, self._scripts[node].pop(0)
        return ids

    def pull_messages(self, message_ids):
        replies = []
        for message_id in sorted(set(message_ids) & self.queue.keys()):
            since, (seconds, code) = self._since[message_id]
            if seconds is None or since + seconds > self._clock.now:
                continue
            message = self.queue[message_id]
            if code is None:
                replies += super().pull_messages([message_id])
                continue
            del self.queue[message_id]
            own = code == CLIENT_BUSY
            replies.append(Message(Error(code, "x"), reply_to=message) if own else flowers_error(message, code=code))
        return replies


def answers(seconds):
    return seconds, None


LOST, BUSY, AWAY = (0.0, ErrorCode.MESSAGE_UNAVAILABLE), (5.0, CLIENT_BUSY), (0.0, ErrorCode.NODE_UNAVAILABLE)
NEVER = None, None


@pytest.fixture
def ask(monkeypatch):
    """Questions over a scripted grid; returns when each node answered, or failed, and when it was asked."""
    clock = Clock()
    monkeypatch.setattr(server.grids, "time", clock)

    def asked(*scripts, rounds=1, after=1.5, away=None, timeout=1000.0):
        inner = Scripted(clock, scripts)
        inner.away = away or {}
        grid, came = StreamingGrid(inner, poll_seconds=0.5, ask_again_after=after), []
        for _ in range(rounds):
            messages = [Message(RecordDict(), dst_node_id=node, message_type="train") for node in inner.contexts]
            for reply in grid.send_and_receive(messages, timeout=timeout):
                came.append((reply.metadata.src_node_id, clock.now, reply.has_content()))
        return came, inner.pushed, grid

    return asked


def times_of(pushed, node):
    return [when for whose, when in pushed if whose == node]


def test_a_node_is_asked_again_after_a_multiple_of_its_own_usual_time_and_then_with_growing_waits(ask):
    """It takes 10 s; then never: asked at 10 + 15, 30 and 60 s later, and never more often than that."""
    came, pushed, grid = ask([answers(10.0), *[NEVER] * 4], rounds=2)
    assert times_of(pushed, 2) == [0.0, 10.0, 25.0, 55.0, 115.0]
    assert [when for _, when, _ in came] == [10.0]
    assert grid.copies == {2: 3}


def test_a_node_of_which_nothing_is_known_is_asked_when_the_others_should_have_had_enough(ask):
    _, pushed, _ = ask([answers(10.0)], [answers(20.0)], [NEVER, answers(10.0)])
    assert times_of(pushed, 4) == [0.0, 30.0]


def test_where_nobody_answers_a_twentieth_of_the_timeout_is_waited(ask):
    came, pushed, _ = ask([NEVER, answers(10.0)], [NEVER, answers(20.0)])
    assert [when for _, when in pushed] == [0.0, 0.0, 50.0, 50.0]
    assert [when for _, when, _ in came] == [60.0, 70.0]


def test_what_is_known_to_be_lost_is_asked_for_at_once(ask):
    came, pushed, _ = ask([LOST, LOST, answers(10.0)])
    assert times_of(pushed, 2) == [0.0, 1.0, 3.5]  # looked for each half second
    assert came == [(2, 13.5, True)]


def test_a_node_that_has_gone_is_told_and_asked_again_if_it_is_back_while_others_are_waited_for(ask):
    came, pushed, _ = ask([AWAY, answers(10.0)], [answers(40.0)], away={2: (0.0, 20.0)})
    assert times_of(pushed, 2) == [0.0, 20.0]
    assert came == [(1, 0.0, False), (2, 30.0, True), (3, 40.0, True)]


def test_a_node_that_has_gone_is_not_waited_for(ask):
    came, pushed, _ = ask([AWAY], [answers(10.0)], away={2: (0.0, 20.0)})
    assert came == [(1, 0.0, False), (3, 10.0, True)]
    assert times_of(pushed, 2) == [0.0]


def test_one_that_is_busy_with_the_same_work_is_asked_again_when_it_should_have_done(ask):
    came, pushed, _ = ask([answers(10.0), BUSY, answers(1.0)], rounds=2)
    assert times_of(pushed, 2) == [0.0, 10.0, 25.0]
    assert came[1:] == [(2, 26.0, True)]


def test_a_second_answer_comes_with_the_next_question_and_then_no_more(ask):
    """Usually 10 s, then 22 s: the copy of 25 s is answered at 36 s, in the round that ends at 42 s."""
    came, pushed, _ = ask([answers(10.0), answers(22.0), answers(11.0), answers(10.0)], rounds=3)
    assert times_of(pushed, 2) == [0.0, 10.0, 25.0, 32.0]
    assert [when for _, when, _ in came] == [10.0, 32.0, 36.0, 42.0]


def test_with_zero_nobody_is_asked_again(ask):
    came, pushed, _ = ask([LOST], [NEVER], after=0.0, timeout=50.0)
    assert len(pushed) == 2
    assert [content for _, _, content in came] == [False]


def test_a_node_whose_answer_was_lost_and_that_goes_then_is_not_waited_for_either(ask):
    """It is there when the loss is heard of, and gone when it would be asked again, a second later."""
    came, pushed, _ = ask([LOST], [answers(10.0)], away={2: (0.5, 900.0)}, timeout=600.0)
    assert came == [(3, 10.0, True)]
    assert times_of(pushed, 2) == [0.0]
