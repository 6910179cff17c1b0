"""Reasons why a call did not get through to the server, told apart: by what may pass, and by what will not.

Flower answers HTTP 401 and 412 for several causes each, and whatever stands between the two machines (a proxy, a load
balancer without a server behind it, a captive portal) answers anything.
"""

import json
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from flwr.supercore.error import ApiErrorCode, FlowerError

from spatl.deployment.keys import KEY_IN_USE, UNKNOWN_KEY

_CLOCK_CODES = frozenset({9, 10})  # of OpenSSL: not yet valid, expired; as this machine's clock goes
_CLOCK_SECONDS = 3.0  # what goes unsaid
_CLOSED = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionResetError, httpx.RemoteProtocolError)
_OF_THE_REQUEST = frozenset({400, 411, 413, 414, 415, 422, 431})


@dataclass(frozen=True)
class Refusal:
    """Refusal of a call.

    Attributes:
        reason: A sentence without its end, which begins with the server.
        passes: Whether it may pass by itself.
        is_of_key: Whether the server knows no such key.
    """

    reason: str
    passes: bool = True
    is_of_key: bool = False


def gist(reason: str) -> str:
    """Return a reason without seconds and times of day, which make no new one of it."""
    return re.sub(r"\d+ s |[\d-]+ \d\d:\d\d UTC", "", reason)


def refusal(error: Exception, address: object) -> Refusal:
    """Return why a call of the Fleet API failed.

    Args:
        error: What it raised.
        address: The server, as messages are to name it.
    """
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _of_certificate(cause, address)
        if isinstance(cause, _CLOSED):
            return Refusal(f"{address} closes connections at once, as a proxy does whose server is away")
        if isinstance(cause, ssl.SSLError):
            told = cause.reason or str(cause)
            return Refusal(f"{address} speaks no TLS ({told}): is it a SuperLink, started without --insecure?")
        if isinstance(cause, httpx.HTTPStatusError):
            return _of_status(cause.response, address)
    if isinstance(error, httpx.TimeoutException):
        return Refusal(f"{address} does not answer")
    if isinstance(error, OSError | httpx.TransportError):
        why = next((cause.strerror for cause in _causes(error) if isinstance(cause, OSError) and cause.strerror), error)
        return Refusal(f"{address} is not there ({why})")
    return Refusal(f"{address} answers, but not as a SuperLink does ({error}); what stands in between?")


def is_flowers(response: httpx.Response) -> bool:
    """Return whether an HTTP error is an answer of Flower's, and none of whatever stands in between."""
    try:
        content = json.loads(response.text)
    except ValueError:
        return False
    return isinstance(content, dict) and isinstance(content.get("detail"), str)


def is_final(error: Exception) -> bool:
    """Return whether the same call would fail again: Flower has answered it, or its size or form is refused."""
    if not isinstance(error, httpx.HTTPStatusError):
        return False
    return is_flowers(error.response) or error.response.status_code in _OF_THE_REQUEST


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _of_certificate(error: ssl.SSLCertVerificationError, address: object) -> Refusal:
    if error.verify_code in _CLOCK_CODES:
        return Refusal(f"{address} has a certificate that is not valid by this machine's clock, which says "
                       f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC ({error.verify_message})")  # fmt: skip
    return Refusal(f"{address} is not the server that this client's ca.pem vouches for: {error.verify_message}",
                   passes=False)  # fmt: skip


def _of_status(response: httpx.Response, address: object) -> Refusal:
    status = response.status_code
    if status == httpx.codes.SERVICE_UNAVAILABLE:
        return Refusal(f"{address} is not ready yet (HTTP {status})")
    if not is_flowers(response):
        return Refusal(f"{address} answers HTTP {status}, and not as a SuperLink does: is it a proxy, and its server "
                       "away?")  # fmt: skip
    if status == httpx.codes.UNAUTHORIZED:
        return Refusal(f"{address} does not take this client's signature (HTTP {status}): {_clocks(response)}")
    told = FlowerError.from_json(response.text)
    if told is not None and told.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        if told.public_details == UNKNOWN_KEY:
            return Refusal(f"{address} does not let this client in: it does not know its key", passes=False,
                           is_of_key=True)  # fmt: skip
        if told.public_details == KEY_IN_USE:
            return Refusal(f"{address} does not let this client in yet: a SuperNode with its key runs, or was killed "
                           "within the last minute")  # fmt: skip
        return Refusal(f"{address} does not let this client in: it does not know its key, or a SuperNode with this "
                       "key runs or was killed within the last minute")  # fmt: skip
    return Refusal(f"{address} refuses (HTTP {status}): {told.message if told else 'without a reason'}")


def _clocks(response: httpx.Response) -> str:
    """Return what is known of the clocks of both machines, by the date of an answer."""
    try:
        theirs = parsedate_to_datetime(response.headers["date"])
        ahead = (datetime.now(UTC) - theirs).total_seconds()
    except (KeyError, TypeError, ValueError):
        return "do the clocks of the two machines agree?"
    if abs(ahead) < _CLOCK_SECONDS:
        return "the server was started anew, or knows this key no more"
    where = "ahead of" if ahead > 0 else "behind"
    return f"this machine's clock is {abs(ahead):.0f} s {where} the server's"
