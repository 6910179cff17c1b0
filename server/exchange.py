"""Exchange of messages with the clients: questions that are out, their answers, and all of it in the ledger."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from flwr.app import Message, MessageType

from server.grids import FederationGrid
from server.questions import Questions, is_gone, is_lost
from server.recorder import Recorder
from server.replies import blob_content, blob_of, content_sections, error_line
from server.traffic import message_traffic
from spatl.errors import SystemFault, UpdateRejected
from spatl.runs.ledger import Direction, Entry, entry
from spatl.wire.blob import CLIENT_MACHINE

logger = logging.getLogger(__name__)

_REMEMBERED = 12  # questions whose second answers are known as such: those of some rounds


class Exchange:
    """Questions that are out, at most one for each client, and the replies to them.

    Args:
        nodes: Flower's node id of each client.
        recorder: Whose round all messages are entered into.
        grid: What carries them, and says whom it asked more than once.
        simulated: Whether clients are of this machine, so that what it refuses them ends the run.

    Attributes:
        nodes: As given.
    """

    def __init__(
        self, nodes: Mapping[int, int], recorder: Recorder, grid: FederationGrid, *, simulated: bool = False
    ) -> None:
        self.nodes = dict(nodes)
        self._grid = grid
        self._simulated = simulated
        self._clients = {node: client for client, node in nodes.items()}
        self._recorder = recorder
        self._questions = Questions()
        self._sent_entries: dict[int, Entry] = {}
        self._kind = ""
        self._connected: set[int] = set()
        # Who has answered the last questions, by kind and round; all have registered.
        self._answered = deque([((str(MessageType.QUERY), "1"), set(nodes))], maxlen=_REMEMBERED)

    def meet(self, nodes: Mapping[int, int]) -> None:
        """Go by other nodes from the next question on."""
        self.nodes = dict(nodes)
        self._clients = {node: client for client, node in nodes.items()}

    def ask(
        self, downloads: Mapping[int, bytes], server_round: int, message_type: str, connected: set[int]
    ) -> list[Message]:
        """Put questions out in the place of those before.

        Args:
            downloads: A blob for each client that is asked.
            server_round: The round that they belong to.
            message_type: Flower's type of the messages.
            connected: Who is, by node id.

        Returns:
            The messages, in the order of the downloads.
        """
        messages = [
            Message(
                blob_content(blob),
                dst_node_id=self.nodes[client],
                message_type=message_type,
                group_id=str(server_round),
            )
            for client, blob in downloads.items()
        ]
        self._questions, self._kind, self._connected = Questions(messages, connected), message_type, connected
        self._answered.append(((message_type, str(server_round)), set()))
        self._sent_entries = {
            client: _entry(self._recorder.round.server_round, client, message, "downlink")
            for client, message in zip(downloads, messages, strict=True)
        }
        return messages

    def answers(self, replies: Iterable[Message], server_round: int, about: str) -> Iterator[tuple[int, Message]]:
        """Pass on with its client what answers the questions that are out, once each, and count what was taken.

        Where Flower says in place of a client that it is gone, its reply is missing. Whoever did not answer is named,
        and so is who was asked more than once.

        Raises:
            SystemFault: This machine refused a client of a simulation something.
        """
        record, waiting, gone = self._recorder.round, set(self._sent_entries), dict[int, str]()
        away = {client for client in waiting if self.nodes[client] not in self._connected}
        position, silent, facts = len(record.entries), "none came in time", {"round": server_round}
        for reply in replies:
            if self._simulated and reply.has_error() and reply.error.code == CLIENT_MACHINE:
                raise SystemFault(error_line(reply.error))
            self._count(reply)
            node = self._questions.node_of(reply)
            client = None if node is None else self._clients.get(node)
            if is_lost(reply):
                if client in waiting:
                    gone[client] = error_line(reply.error)
                    away |= {client} if is_gone(reply) else set()
                elif client is None:
                    silent = error_line(reply.error)
            elif client in waiting:
                waiting.discard(client)
                self._answered[-1][1].add(client)
                yield client, reply
                del reply  # another client may train before the next one is here
            else:
                self._ignore(reply, about, facts)
        for client in sorted(waiting):
            reason = gone.get(client, silent)
            logger.warning("%s: no answer of client %d: %s", about, client, reason, extra=facts | {"client": client})
        if self._kind == MessageType.TRAIN:
            record.away = away & waiting
            record.silent = waiting - away - gone.keys()
        taken = list[Entry]()
        for client, sent in self._sent_entries.items():
            copies = self._grid.copies.get(self.nodes[client], 0)
            if copies:
                record.asked_again[client] += copies
                logger.warning(
                    "%s: client %d was asked again, %d times: no answer came in its usual time",
                    about, client, copies, extra=facts | {"client": client},
                )  # fmt: skip
            if copies or self._questions.was_taken(self.nodes[client], answered=client not in waiting):
                taken += [sent] * (1 + copies)
        record.entries[position:position] = taken

    def _ignore(self, reply: Message, about: str, facts: Mapping[str, object]) -> None:
        """Count and name a reply that is of no use: a second one to a question, or one that is late."""
        own, source = reply.metadata, self._clients.get(reply.metadata.src_node_id)
        whose = "a reply" if source is None else f"a reply of client {source}"
        if any(source in who for asked, who in self._answered if asked == (own.message_type, own.group_id)):
            self._recorder.round.duplicates += 1
            logger.info("%s: ignored %s that has answered already", about, whose, extra=facts)
            return
        logger.warning("%s: ignored %s that nobody asked for, or that came late", about, whose, extra=facts)
        self._recorder.round.late += 1

    def _count(self, reply: Message) -> None:
        """Enter a reply into the ledger; one that is an error has no bytes that anyone counts."""
        client = self._clients.get(reply.metadata.src_node_id)
        if client is not None and reply.has_content():
            record = self._recorder.round
            record.entries.append(_entry(record.server_round, client, reply, "uplink"))


def contents(asked: Iterable[tuple[int, Message]]) -> Iterator[tuple[int, bytes | UpdateRejected]]:
    """The blob of each reply as it comes, or why there is none; neither is kept while the next one is waited for."""
    for client, reply in asked:
        content = _content(reply)
        del reply
        yield client, content
        del content


def _content(reply: Message) -> bytes | UpdateRejected:
    """The blob of a reply, or why there is none."""
    try:
        return blob_of(reply)
    except UpdateRejected as error:
        return error


def _entry(server_round: int, client: int, message: Message, direction: Direction) -> Entry:
    """Return the line of the ledger for a message."""
    phase = str(message.metadata.message_type)
    traffic = message_traffic(
        message.content, direction=direction, message_type=phase, group_id=message.metadata.group_id
    )
    return entry(
        server_round=server_round,
        client=client,
        direction=direction,
        phase=phase,
        num_bytes=traffic.num_bytes,
        opposite=traffic.opposite,
        sections=content_sections(message.content),
    )
