"""Grid over another one of Flower's: what the two that do one thing differently have in common."""

from collections.abc import Iterable
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.run import Run


class OverGrid(Grid):
    """Grid that hands all on to another one; a subclass does part of it in a way of its own.

    Args:
        inner: The grid that carries the messages.
    """

    def __init__(self, inner: Grid) -> None:
        self._inner = inner

    def set_run(self, run: Run) -> None:
        """Set the run of the inner grid."""
        self._inner.set_run(run)

    @property
    def run(self) -> Run:
        """Run of the inner grid."""
        return self._inner.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Create a message by the inner grid."""
        return self._inner.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of the inner grid."""
        return self._inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages by the inner grid."""
        return self._inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull replies from the inner grid."""
        return self._inner.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies by the inner grid."""
        return self._inner.send_and_receive(messages, timeout=timeout)
