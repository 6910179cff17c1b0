"""Replies of clients taken apart: the blob of a message, or the error that stands in its place."""

import logging
import re
from collections.abc import Mapping
from pathlib import PurePath

from flwr.app import ConfigRecord, Error, Message, RecordDict

from spatl.errors import UpdateRejected, printable
from spatl.rounds.answers import ClientFailed
from spatl.wire.blob import (
    BLOB,
    CLIENT_DIVERGED,
    CLIENT_FORGOT,
    CLIENT_LOST,
    CLIENT_NOT_NOW,
    CLIENT_REFUSED,
    CLIENT_UNREGISTERED,
    RECORD,
    section_bytes,
)

logger = logging.getLogger(__name__)

_LONGEST_READ = 32 << 10  # of a reason, from either end
_LONGEST_REASON = 500
_LONGEST_TRACEBACK = 16_000
_TRACEBACK = "Traceback (most recent call last)"
_FRAME = re.compile(r'\s*File "(.*)", line (\d+), in (.*)')


def blob_content(blob: bytes) -> RecordDict:
    """The records of a message that carries a packed blob."""
    return RecordDict({RECORD: ConfigRecord({BLOB: blob})})


def blob_of(reply: Message) -> bytes:
    """The blob of a reply.

    Raises:
        ClientFailed: The reply is an error.
        UpdateRejected: It has no blob.
    """
    if reply.has_error():
        code = reply.error.code
        raise ClientFailed(
            error_line(reply.error), traceback=error_traceback(reply.error),
            diverged=code == CLIENT_DIVERGED, lost=code in (CLIENT_LOST, CLIENT_FORGOT, CLIENT_UNREGISTERED),
            forgot=code in (CLIENT_FORGOT, CLIENT_UNREGISTERED),  # the latter keeps nothing at all
            not_now=code == CLIENT_NOT_NOW, unregistered=code == CLIENT_UNREGISTERED,
        )  # fmt: skip
    blob = _blob_in(reply.content)
    if blob is None:
        raise UpdateRejected(f"the reply has no {RECORD} record with a {BLOB} of bytes")
    return blob


def content_sections(content: RecordDict) -> Mapping[str, int]:
    """Section lengths of the blob in a message; nothing for a message without one, or with one that is damaged."""
    try:
        return section_bytes(_blob_in(content) or b"")
    except UpdateRejected:
        return {}


def own_record(content: RecordDict) -> ConfigRecord | None:
    """The record of ours in a message; None for a message without one."""
    record = content.get(RECORD)  # `config_records` would make a cycle, and keep it until the next collection
    return record if isinstance(record, ConfigRecord) else None


def _blob_in(content: RecordDict) -> bytes | None:
    record = own_record(content)
    blob = None if record is None else record.get(BLOB)
    return blob if isinstance(blob, bytes) else None


def error_line(error: Error) -> str:
    """The reason of a client's error in one line: its first, or what the traceback of another runtime ends in."""
    lines = _lines(error)
    logger.debug("a client reported: %s", "\n".join(lines))
    if not lines:
        return "the client reported an error without a reason"
    if error.code >= CLIENT_REFUSED or not any(line.strip().startswith(_TRACEBACK) for line in lines):
        return lines[0].strip()[:_LONGEST_REASON]
    frames = [number for number, line in enumerate(lines) if _FRAME.match(line)]
    said = [line for line in lines[frames[-1] + 1 if frames else 0 :] if not line.startswith(" ")] or lines[-1:]
    found = [place for number in frames if (place := _FRAME.match(lines[number])) is not None]
    users = [place for place in found if not re.search(r"site-packages|lib[/\\]python", place[1])]
    told = said[0].strip()[:_LONGEST_REASON]
    if not found:
        return told
    place = (users or found)[-1]
    return f"{told} ({PurePath(place[1]).name}:{place[2]}, in {place[3]})"


def error_traceback(error: Error) -> str:
    """Traceback in a client's error, made harmless to a terminal; empty for none."""
    lines = _lines(error)
    return "\n".join(lines)[:_LONGEST_TRACEBACK] if len(lines) > 1 else ""


def _lines(error: Error) -> list[str]:
    """Lines of a reason; of one of megabytes its first and its last ones."""
    reason = error.reason or ""
    if len(reason) > 2 * _LONGEST_READ:
        reason = f"{reason[:_LONGEST_READ]}\n...\n{reason[-_LONGEST_READ:]}"
    return [line.rstrip() for line in printable(reason).splitlines() if line.strip()]
