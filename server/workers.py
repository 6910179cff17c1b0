"""Grid whose clients are trained side by side by processes that this one forks (`resources.workers`).

What the process has by then, the data and the network, all of them read where it lies: nothing is copied but what is
written to. Each client belongs to one worker, which has its state at hand; the largest are shared out first, so that
workers have about as much to do. Replies are passed on in the order of the questions, whoever is ready first.
"""

import json
import logging
import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Final

import torch
from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as MessageProto

from server.grids import InProcessGrid
from spatl.deployment.processes import end_with_parent
from spatl.errors import SpatlError
from spatl.json_files import to_json
from spatl.runs.log import EVENTS

_AHEAD: Final = 4  # replies a worker that may be kept while an earlier one is waited for
_OF_EVERY_RECORD: Final = frozenset(logging.makeLogRecord({}).__dict__) - {"name", "levelno", "levelname", "exc_text"}


class WorkerGrid(InProcessGrid):
    """Grid that has its clients' messages handled by forked processes, as many at a time.

    Where a process dies, the reply it was at is missing, and the others take its clients.

    Args:
        client_app: Flower's app of the clients.
        num_workers: How many processes, at least 1.
        sizes: How much each client has to do, in any unit.
        settings: Of `InProcessGrid`.
    """

    def __init__(self, client_app: ClientApp, *, num_workers: int, sizes: Sequence[int], **settings: Any) -> None:
        super().__init__(client_app, **settings)
        self._sizes = dict(zip(self.contexts, sizes, strict=True))
        self._workers: list[_Worker] = []
        for _ in range(min(num_workers, len(sizes))):
            self._workers.append(self._forked())
        self._owner = _shared_out(self._sizes, self._workers)

    def _forked(self) -> "_Worker":
        """Fork one process that handles messages until its pipe is closed."""
        ours, theirs = multiprocessing.Pipe()
        with warnings.catch_warnings():
            # Python warns of threads, which NumPy's libraries have, and which no worker uses.
            warnings.simplefilter("ignore", DeprecationWarning)
            number = os.fork()  # what `multiprocessing` starts may start nothing itself where it is a benchmark's job
        if number:
            theirs.close()
            return _Worker(number, ours)
        try:
            for worker in self._workers:
                worker.pipe.close()
            ours.close()
            self._work(theirs)
        finally:
            os._exit(1)  # and nothing of what the server does at its end

    def _work(self, pipe: Connection) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, which the server has as well
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        end_with_parent()
        torch.set_num_threads(1)
        told = _heard_here()
        with suppress(EOFError, OSError):
            while True:
                message = message_from_proto(MessageProto.FromString(pipe.recv_bytes()))
                reply = self._call(message)
                pipe.send_bytes(to_json(told).encode())
                told.clear()
                pipe.send_bytes(message_to_proto(reply).SerializeToString())

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages and yield the replies, in the same order; `timeout` is not needed."""
        asked = list(messages)
        self.push_messages(asked)
        waiting: dict[_Worker, deque[int]] = {}
        replies: dict[int, Message | None] = {}
        for place, message in enumerate(asked):
            node = message.metadata.dst_node_id
            if node in self.contexts:
                waiting.setdefault(self._owner[node], deque()).append(place)
            else:
                (replies[place],) = super().pull_messages([message.metadata.message_id])
        for place in range(len(asked)):
            while place not in replies:
                self._hand_out(asked, waiting, place)
                self._collect(asked, waiting, replies)
            reply, message = replies.pop(place), asked[place]
            client = message.metadata.dst_node_id - min(self._sizes)
            if reply is not None and not self._loses(client, message):
                yield reply

    def _hand_out(self, asked: Sequence[Message], waiting: Mapping["_Worker", deque[int]], first: int) -> None:
        """Give each worker that has nothing to do its next message, unless that is far ahead of what is waited for."""
        for worker, places in waiting.items():
            if worker.at is None and places and places[0] < first + _AHEAD * len(self._workers):
                worker.at = places.popleft()
                message = asked[worker.at]
                self.queue.pop(message.metadata.message_id)
                with suppress(OSError):  # of one that has died, which is seen when its answer is waited for
                    worker.pipe.send_bytes(message_to_proto(message).SerializeToString())
                message.content = RecordDict()  # which the worker has

    def _collect(
        self, asked: Sequence[Message], waiting: dict["_Worker", deque[int]], replies: dict[int, Message | None]
    ) -> None:
        """Wait for an answer, and take all that are there."""
        busy = {worker.pipe: worker for worker in self._workers if worker.at is not None}
        for pipe in wait(list(busy)):
            assert isinstance(pipe, Connection)
            worker = busy[pipe]
            place, worker.at = worker.at, None
            assert place is not None
            try:
                records = json.loads(pipe.recv_bytes())
                content = message_from_proto(MessageProto.FromString(pipe.recv_bytes()))
            except (EOFError, OSError):
                replies[place] = Message(
                    Error(code=ErrorCode.NODE_UNAVAILABLE, reason=f"the worker that was at it died{worker.ended()}"),
                    reply_to=asked[place],
                )
                self._bury(worker, waiting)
                continue
            for record in records:
                _tell(record)
            answer = content.error if content.has_error() else content.content
            replies[place] = Message(answer, reply_to=asked[place])

    def _bury(self, dead: "_Worker", waiting: dict["_Worker", deque[int]]) -> None:
        """Share the clients of a worker that died out among the others.

        Raises:
            SpatlError: None is left.
        """
        self._workers.remove(dead)
        if not self._workers:
            raise SpatlError(
                f"all processes that train clients died{dead.ended()}: is memory enough for so many? The run goes on "
                "with fewer: --resume DIRECTORY --set resources.workers=N"
            )
        orphans = {node: self._sizes[node] for node, worker in self._owner.items() if worker is dead}
        self._owner |= _shared_out(orphans, self._workers)
        left = waiting.pop(dead, deque())
        heirs = _shared_out(dict.fromkeys(left, 1), self._workers)
        for place in left:
            waiting.setdefault(heirs[place], deque()).append(place)
        for places in waiting.values():
            ordered = sorted(places)
            places.clear()
            places.extend(ordered)

    def close(self) -> None:
        """End the workers at once: what they were at, nobody waits for."""
        for worker in self._workers:
            os.kill(worker.number, signal.SIGKILL)
            worker.ended()
            worker.pipe.close()
        self._workers.clear()


@dataclass(eq=False)
class _Worker:
    """A process that handles messages: its id, where its present one stands among those asked, how it ended."""

    number: int
    pipe: Connection
    at: int | None = None
    status: int | None = None

    def ended(self) -> str:
        """Return how it ended, in words."""
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.number, 0)[1])
        return f" ({signal.Signals(-self.status).name})" if self.status < 0 else f" (status {self.status})"


def _shared_out(sizes: Mapping[int, int], workers: Sequence[_Worker]) -> dict[int, _Worker]:
    """Return the worker of each key: the largest goes to whoever has least, one after the other."""
    loads = [0] * len(workers)
    found = {}
    for key in sorted(sizes, key=lambda each: (-sizes[each], each)):
        place = loads.index(min(loads))
        loads[place] += sizes[key]
        found[key] = workers[place]
    return found


def _heard_here() -> list[dict[str, Any]]:
    """Have what this process logs go into a list, as JSON has it, and nowhere else; return it."""
    told: list[dict[str, Any]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and not record.exc_text:
                record.exc_text = logging.Formatter().formatException(record.exc_info)
            own = {
                name: value if isinstance(value, str | int | float | None) else str(value)
                for name, value in record.__dict__.items()
                if name not in _OF_EVERY_RECORD
            }
            told.append(own | {"msg": record.getMessage()})

    for logger in (logging.getLogger(), EVENTS):
        logger.handlers[:] = [Handler()]
    return told


def _tell(record: Mapping[str, Any]) -> None:
    """Log what a worker has logged."""
    logging.getLogger(str(record["name"])).handle(logging.makeLogRecord(dict(record)))
