"""Warnings that were said before there was a log to take them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def remembered_warnings() -> Iterator[list[logging.LogRecord]]:
    """Collect the warnings of the block, which go their usual ways as well; a log opened later may still take them."""
    records: list[logging.LogRecord] = []

    class _Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)
            if root.handlers == [self] and logging.lastResort:  # which prints only where nobody else listens
                logging.lastResort.handle(record)

    root, collector = logging.getLogger(), _Collector(logging.WARNING)
    root.addHandler(collector)
    try:
        yield records
    finally:
        root.removeHandler(collector)
