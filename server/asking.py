"""Asking again: how long a node's answer is waited for before its question, or the answer, is taken for lost.

A SuperLink marks a message as delivered once it has handed it out, and never hands it out again; an answer that is lost
on its way is lost for good. Neither end hears of either. So a question that has no answer after a small multiple of the
time that the node usually takes is put again, as a new message of the same content, a few times with growing waits. A
node that was only slow answers twice; a client does the work of a question once, whatever copies of it arrive.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from server.questions import LOST
from spatl.wire.blob import CLIENT_BUSY

MOST_COPIES = 3  # of one question, beside the first
SOON_SECONDS = 1.0  # after which what is known to be lost is asked again, and a node is looked for that has gone
UNANSWERED = (*LOST, CLIENT_BUSY)  # codes of errors after which an answer may come yet
_REMEMBERED = 3  # answers of a node that say what is usual
_POLL_SECONDS = 3.0  # a SuperNode asks for messages so often: no two answers differ by less for sure
_UNKNOWN_SHARE = 0.05  # of the timeout, where nothing says how long an answer takes


class AnswerTimes:
    """Times in seconds that nodes took to answer, by kind of question; they are not kept beyond the process.

    Args:
        multiple: How many times the usual time is waited before a question is asked again; 0 for never.
    """

    def __init__(self, multiple: float) -> None:
        self._multiple = multiple
        self._seconds: dict[tuple[int, str], deque[float]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))

    @property
    def asks_again(self) -> bool:
        """Choice to ask a question more than once."""
        return self._multiple > 0

    def note(self, node: int, message_type: str, seconds: float) -> None:
        """Remember the time of one answer."""
        self._seconds[node, message_type].append(seconds)

    def wait(self, node: int, message_type: str, others: Iterable[float], number: int, timeout: float | None) -> float:
        """Return how long an answer is waited for before its question is asked again for the first time.

        Args:
            node: Whose answer it is.
            message_type: The kind of question.
            others: How long those took that have answered the same question.
            number: How many were asked it.
            timeout: How long all are waited for; None for ever.
        """
        own, answered = self._seconds.get((node, message_type)), list(others)
        if own:
            usual = max(own)
        elif answered and 2 * len(answered) >= number:
            usual = max(answered)
        else:
            return float("inf") if timeout is None else _UNKNOWN_SHARE * timeout
        return max(self._multiple * usual, usual + _POLL_SECONDS)


@dataclass(eq=False)
class _Asked:
    """One node's question while its answer is waited for.

    Attributes:
        message: The question; None where nobody will ask it again.
        first: The id of its first copy.
        sent: When each copy was sent that may be answered yet, in seconds, by its id.
        last: When the last was.
        copies: How many there were beside the first.
        ask_at: When it is asked again in any case; None where the usual time decides.
        away: Whether the node had gone when it was looked for: it is not waited for, but asked again if it is back.
    """

    message: Message | None
    first: str
    sent: dict[str, float]
    last: float
    copies: int = 0
    ask_at: float | None = None
    away: bool = False


class OpenQuestions:
    """Questions of one kind that are out over a grid: sent, asked again when it is time, and settled by the replies.

    Args:
        inner: The grid that carries the messages.
        messages: They, at most one to each node; they are sent at once.
        times: What is usual, and whether anything is asked again.
        late: Messages of earlier questions that may be answered yet, by their id, and the node of each; it is kept up.
        now: The time in seconds.
        timeout: How many seconds all are waited for; None for ever.

    Attributes:
        number: How many questions there are.
        copies: How many copies of its question each node was sent beside the first, by node id.
        num_answered: How many nodes have answered, be it with an error of their own.
    """

    def __init__(
        self, inner: Grid, messages: list[Message], times: AnswerTimes, late: dict[str, int], *, now: float,
        timeout: float | None,
    ) -> None:  # fmt: skip
        self.number, self.copies = len(messages), Counter[int]()
        self._inner, self._times, self._late, self._timeout = inner, times, late, timeout
        self._kind = str(messages[0].metadata.message_type) if messages else ""
        self.num_answered = 0
        self._others = list[float]()  # how long those took that have answered
        self._asked = dict[int, _Asked]()
        self._nodes = dict[str, int]()  # of every message that may be answered yet, by its id
        for message, message_id in self._pushed(messages):
            kept = message if times.asks_again else None
            self._asked[message.metadata.dst_node_id] = _Asked(kept, message_id, {message_id: now}, now)
            self._nodes[message_id] = message.metadata.dst_node_id

    @property
    def num_waiting(self) -> int:
        """Number of the nodes that are waited for."""
        return sum(not asked.away for asked in self._asked.values())

    def pull(self, now: float) -> list[Message]:
        """Return the replies that have come: answers, late ones, and what says that no answer will come."""
        ids = self._nodes.keys() | self._late.keys()
        return [reply for reply in self._inner.pull_messages(ids) if self._settle(reply, now)]

    def ask_again(self, now: float) -> None:
        """Ask those nodes once more whose answer should have come, where they are connected."""
        due = [node for node, asked in self._asked.items() if self._is_due(node, asked, now)]
        if not due:
            return
        connected, messages = set(self._inner.get_node_ids()), []
        for node in due:
            asked = self._asked[node]
            asked.ask_at = now + SOON_SECONDS  # to look for it once more
            if node not in connected:
                asked.away = asked.away or not asked.sent  # nothing that may be answered yet is on its way
            elif asked.message is not None:
                own = asked.message.metadata
                messages.append(
                    Message(
                        asked.message.content, dst_node_id=node, message_type=own.message_type, group_id=own.group_id
                    )
                )
        for message, message_id in self._pushed(messages):
            node = message.metadata.dst_node_id
            asked = self._asked[node]
            asked.sent[message_id] = asked.last = now
            asked.copies, asked.ask_at, asked.away = asked.copies + 1, None, False
            self._nodes[message_id] = node
            self.copies[node] += 1

    def close(self) -> None:
        """Wait no longer: what is answered from here on is late."""
        self._late.update(self._nodes)

    def _pushed(self, messages: list[Message]) -> Iterator[tuple[Message, str]]:
        """Send messages; yield those that were taken and their ids, and take the ids of the others away."""
        if not messages:
            return
        taken = set(filter(None, self._inner.push_messages(messages)))
        for message in messages:
            if message.metadata.message_id in taken:
                yield message, message.metadata.message_id
            else:
                message.metadata.__dict__["_message_id"] = ""  # no setter

    def _is_due(self, node: int, asked: _Asked, now: float) -> bool:
        if asked.message is None or asked.copies >= MOST_COPIES:
            return False
        if asked.ask_at is not None:
            return now >= asked.ask_at
        wait = self._times.wait(node, self._kind, self._others, self.number, self._timeout)
        return now >= asked.last + wait * (1 << asked.copies)

    def _settle(self, reply: Message, now: float) -> bool:
        """Take what a reply answers off what is waited for; return whether it is of use to whoever asked."""
        answered = reply.metadata.reply_to_message_id
        if self._late.pop(answered, None) is not None:
            return not reply.has_error()
        node = self._nodes.get(answered)
        if node is None:
            return self._settle_vague(reply, now) if reply.has_error() else True
        asked = self._asked[node]
        reply.metadata.__dict__["_reply_to_message_id"] = asked.first  # whichever copy it was
        if not reply.has_error() or reply.error.code not in UNANSWERED:
            del self._nodes[answered]
            seconds = now - asked.sent.pop(answered)
            # That of a copy may be one that the node had made before, and says nothing of its work.
            self._settle_answer(node, asked, seconds, counts=reply.has_content() and answered == asked.first)
            return True
        del asked.sent[answered], self._nodes[answered]
        if asked.sent:  # another copy may be answered yet
            return False
        if asked.message is None or asked.copies >= MOST_COPIES:
            del self._asked[node]
            return True
        if reply.error.code != CLIENT_BUSY:  # whose work may take its usual time
            asked.ask_at = now + SOON_SECONDS * (1 << asked.copies)
        asked.away = node not in set(self._inner.get_node_ids())
        return asked.away

    def _settle_answer(self, node: int, asked: _Asked, seconds: float, *, counts: bool) -> None:
        """Wait no longer for a node that has answered; what else it was asked before, and in vain, is let go."""
        self.num_answered += 1
        if counts:
            self._times.note(node, self._kind, seconds)
            self._others.append(seconds)
        for message_id in [message_id for message_id, source in self._late.items() if source == node]:
            del self._late[message_id]  # a node answers in the order in which it was asked
        for message_id in asked.sent:
            del self._nodes[message_id]
            self._late[message_id] = node
        del self._asked[node]

    def _settle_vague(self, reply: Message, now: float) -> bool:
        """Take an error that does not say which message it stands for, and may stand for several.

        It is about the nodes that have gone.
        """
        connected = set(self._inner.get_node_ids())
        gone = [node for node, asked in self._asked.items() if not asked.away and node not in connected]
        for node in gone:
            asked = self._asked[node]
            for message_id in asked.sent:
                del self._nodes[message_id]
            asked.sent.clear()
            asked.away, asked.ask_at = True, now + SOON_SECONDS
            if asked.message is None:
                del self._asked[node]
            if node == gone[0]:
                reply.metadata.__dict__["_reply_to_message_id"] = asked.first
        return bool(gone)
