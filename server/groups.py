"""Grid that trains the clients of a group as one program, in this process (`training.group_size`)."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final

from flwr.app import Message, MessageType
from flwr.clientapp import ClientApp

from server.grids import InProcessGrid
from spatl.training.device import reproducible
from spatl.training.meeting import Meeting

_AHEAD: Final = 8  # groups whose clients are chosen for one another, and whose replies are kept until all are in


class GroupGrid(InProcessGrid):
    """Grid whose clients train in groups, those with about as many examples together.

    Replies come in the order of the questions. Which clients make a group depends on who is asked, and on nothing else.

    Args:
        client_app: Flower's app of the clients.
        group_size: Clients of a group, 2 at least.
        threads: CPU threads that a group trains with.
        sizes: Examples of each client.
        settings: Of `InProcessGrid`.
    """

    def __init__(
        self, client_app: ClientApp, *, group_size: int, threads: int, sizes: Sequence[int], **settings: Any
    ) -> None:
        super().__init__(client_app, **settings)
        self._group_size, self._threads = group_size, threads
        self._sizes = dict(zip(self.contexts, sizes, strict=True))
        self._meeting = Meeting[Message](group_size)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages and yield the replies, in the same order; `timeout` is not needed."""
        waiting = iter(list(messages))
        del messages
        while asked := list(islice(waiting, _AHEAD * self._group_size)):
            if asked[0].metadata.message_type != MessageType.TRAIN or len(asked) == 1:
                yield from super().send_and_receive(asked)
            else:
                yield from self._trained(asked)

    def _trained(self, asked: list[Message]) -> Iterator[Message]:
        """Have some messages handled, group by group, and yield the replies."""
        self.push_messages(asked)
        connected = [place for place, each in enumerate(asked) if each.metadata.dst_node_id in self.contexts]
        connected.sort(key=lambda place: (-self._sizes[asked[place].metadata.dst_node_id], place))
        replies: dict[int, Message] = {}
        for start in range(0, len(connected), self._group_size):
            group = connected[start : start + self._group_size]
            for place in group:
                self.queue.pop(asked[place].metadata.message_id)
            with reproducible(self._threads):
                found = self._meeting.hold([partial(self._call, asked[place]) for place in group])
            replies |= zip(group, found, strict=True)
        for place, message in enumerate(asked):
            if place not in replies:
                yield from self.pull_messages([message.metadata.message_id])
                continue
            client = self.contexts[message.metadata.dst_node_id].node_config["partition-id"]
            assert isinstance(client, int)
            reply = replies.pop(place)
            if not self._loses(client, message):
                yield reply

    def close(self) -> None:
        """End the threads of the clients."""
        self._meeting.close()
