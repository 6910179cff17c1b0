"""How long a round waits for whom, by a clock that the tests move."""

import pytest
from flwr.app import Message, RecordDict

import server.grids
from server.grids import InProcessGrid, StreamingGrid
from tests.support.flower import echo, flowers_error
from tests.support.lossy import Clock


class Slow(InProcessGrid):
    """Each node's reply is there when the clock says so; None for never. Some nodes have gone."""

    def __init__(self, clock, seconds, gone=()):
        super().__init__(echo, num_clients=len(seconds), run_config={})
        self._clock, self._ready = clock, dict(zip(self.contexts, seconds, strict=True))
        self._gone = gone

    def pull_messages(self, message_ids):
        for message_id in message_ids:
            message = self.queue.get(message_id)
            if message and message.metadata.dst_node_id in self._gone:
                return [flowers_error(self.queue.pop(message_id))]
            ready = self._ready[message.metadata.dst_node_id] if message else None
            if ready is not None and ready <= self._clock.now:
                return super().pull_messages([message_id])
        return []


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(server.grids, "time", clock)
    return clock


def ask(clock, seconds, *, patience, kind="train", timeout=100.0, gone=()):
    """How many replies come, and when the waiting is over."""
    grid = StreamingGrid(Slow(clock, seconds, gone), poll_seconds=0.5, patience=patience)
    messages = [Message(RecordDict(), dst_node_id=node, message_type=kind) for node in grid.get_node_ids()]
    number = len(list(grid.send_and_receive(messages, timeout=timeout)))
    return number, clock.now


def test_without_patience_a_round_waits_until_its_timeout(clock):
    assert ask(clock, [1, 2, 3, None], patience=None) == (3, 100.0)


def test_once_half_are_in_the_others_have_so_many_times_as_long(clock):
    """The second of four comes after 2 s: with a patience of 3, six more seconds; what comes after 7 is in time."""
    assert ask(clock, [1, 2, 7, None], patience=3.0) == (3, 8.0)


def test_what_comes_later_than_that_is_not_waited_for(clock):
    assert ask(clock, [1, 2, 9, 60], patience=3.0) == (2, 8.0)


def test_while_less_than_half_are_in_only_the_timeout_counts(clock):
    assert ask(clock, [1, None, None, None], patience=3.0, timeout=20.0) == (1, 20.0)


def test_nodes_that_have_gone_are_no_measure_of_the_others(clock):
    """Of two, one is known at once to be gone: the other is the only one that could be waited for."""
    assert ask(clock, [None, 30.0], patience=1.0, gone=(2,)) == (2, 30.0)


def test_the_timeout_comes_first_where_patience_would_last_longer(clock):
    assert ask(clock, [1, 5, None, None], patience=100.0, timeout=20.0) == (2, 20.0)


def test_registration_has_the_whole_timeout(clock):
    assert ask(clock, [1, 2, 9, 60], patience=3.0, kind="query") == (4, 60.0)


def test_a_round_in_which_all_answer_ends_with_the_last(clock):
    assert ask(clock, [1, 2, 3, 4], patience=3.0) == (4, 4.0)
