"""Grids of Flower that stream replies: one through any other grid, and one that runs the clients in this process."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from server.asking import AnswerTimes, OpenQuestions
from server.over_grid import OverGrid
from spatl.errors import traceback_of

SERVER_NODE_ID = 1


class FederationGrid(Grid):
    """Grid whose `send_and_receive` yields each reply as it comes, and says whom it asked more than once.

    Attributes:
        copies: How many copies of its last question each node was sent beside the first, by node id.
    """

    copies: Mapping[int, int] = MappingProxyType({})


class StreamingGrid(OverGrid, FederationGrid):
    """Grid whose `send_and_receive` yields each reply as it comes, over any other grid.

    Flower's strategies hand the iterable straight to their aggregation, so that nothing waits for the last reply and
    no more than one reply is held. A reply to an earlier question comes with the others: whoever asks tells it by its
    group.

    Args:
        inner: The grid that carries the messages.
        poll_seconds: How long to wait before asking again when nothing came.
        patience: Once half of the replies to training are in, the others are waited for at most so many times as long
            as these took; None for no such limit.
        ask_again_after: How many times as long as usual an answer is waited for before its question is asked again; 0
            for never. The questions are then kept until they are answered.
    """

    def __init__(
        self, inner: Grid, *, poll_seconds: float = 0.1, patience: float | None = None, ask_again_after: float = 0.0
    ) -> None:
        super().__init__(inner)
        self._poll_seconds = poll_seconds
        self._patience = patience
        self._times = AnswerTimes(ask_again_after)
        self._late = dict[str, int]()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages and yield the replies in the order they come, until all are in or the time is over."""
        outgoing, started = list(messages), time.monotonic()
        del messages
        trains = bool(outgoing) and outgoing[0].metadata.message_type == MessageType.TRAIN
        questions = OpenQuestions(self._inner, outgoing, self._times, self._late, now=started, timeout=timeout)
        del outgoing
        self.copies = questions.copies
        patience = self._patience if trains else None
        deadline = None if timeout is None else started + timeout
        while questions.num_waiting and (deadline is None or time.monotonic() < deadline):
            replies = questions.pull(time.monotonic())
            for reply in replies:
                yield reply
                # Those that have gone have not answered: they are no measure for the others.
                if patience is not None and 0 < questions.num_answered >= questions.num_waiting:
                    now = time.monotonic()
                    deadline = min(now + patience * (now - started), math.inf if deadline is None else deadline)
                    patience = None
            questions.ask_again(time.monotonic())
            if not replies:
                time.sleep(self._poll_seconds)
        questions.close()


class InProcessGrid(FederationGrid):
    """Grid that calls a ClientApp directly: no Ray, no SuperLink, no polling; one message at a time, in order.

    Args:
        client_app: Flower's app of the clients.
        num_clients: Number of nodes; node i + 2 holds partition i.
        run_config: Flower's run config, the same for every node.
        loses: Whether the reply of a node to a message is lost on its way, for tests of faults: called with the
            partition id and the message after the client has done its work.

    Attributes:
        contexts: What each node knows of itself and keeps between messages, by its id; a node whose entry is taken out
            is not connected.
        queue: The messages that no client has worked on yet, by their id.
    """

    def __init__(
        self,
        client_app: ClientApp,
        *,
        num_clients: int,
        run_config: Mapping[str, str],
        loses: Callable[[int, Message], bool] = lambda client, message: False,
    ) -> None:
        # Outside Flower's runtimes a Message can only be made once its process has an identity.
        TaskIdentity.task_id = TaskIdentity.run_id = 1
        TaskIdentity.node_id = SERVER_NODE_ID
        self._client_app = client_app
        self._loses = loses
        self.queue: OrderedDict[str, Message] = OrderedDict()
        self._num_messages = 0
        self.contexts = {
            SERVER_NODE_ID + 1 + client: Context(
                run_id=1,
                node_id=SERVER_NODE_ID + 1 + client,
                node_config={"partition-id": client, "num-partitions": num_clients},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for client in range(num_clients)
        }

    def set_run(self, run: Run) -> None:
        """Do nothing: there is only one run here."""

    @property
    def run(self) -> Run:
        """Empty run."""
        return Run.create_empty(run_id=1)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message, as Flower's deprecated method does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes, ascending."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages."""
        ids = []
        for message in messages:
            self._num_messages += 1
            message_id = f"message-{self._num_messages}"
            message.metadata.__dict__["_message_id"] = message_id  # no setter; Flower's own grids do the same
            self.queue[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the next queued message that is asked for, and return its reply (nothing if it was lost)."""
        wanted = set(message_ids)
        for message_id in self.queue:
            if message_id in wanted:
                message = self.queue.pop(message_id)
                if message.metadata.dst_node_id not in self.contexts:  # as a SuperLink says it
                    gone = Error(code=ErrorCode.NODE_UNAVAILABLE, reason="the node is not connected")
                    return [Message(gone, reply_to=message)]
                reply = self._call(message)
                client = self.contexts[message.metadata.dst_node_id].node_config["partition-id"]
                assert isinstance(client, int)
                return [] if self._loses(client, message) else [reply]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages and yield the replies; `timeout` is not needed, since every client answers at once."""
        ids = self.push_messages(messages)
        del messages  # each goes once it is answered
        for message_id in ids:
            yield from self.pull_messages([message_id])

    def _call(self, message: Message) -> Message:
        try:
            return self._client_app(message, self.contexts[message.metadata.dst_node_id])
        except Exception as error:  # as in Flower's runtimes, what a client raises reaches the server as a reply
            # As Flower's runtimes put it.
            return Message(
                Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=traceback_of(error)), reply_to=message
            )
