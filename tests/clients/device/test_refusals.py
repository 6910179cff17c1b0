"""Causes of a failed call, told apart."""

import json
import re
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from flwr.supercore.error import ApiErrorCode

from clients.device.refusals import gist, is_final, refusal
from spatl.deployment.keys import KEY_IN_USE, UNKNOWN_KEY

SERVER = "server.example.org:9092"


def status(code: int, body: object = None, **headers: str) -> httpx.HTTPStatusError:
    content = body if isinstance(body, str) else json.dumps(body) if body is not None else ""
    request = httpx.Request("POST", f"https://{SERVER}/v1/fleet/activate-node")
    response = httpx.Response(code, content=content, request=request, headers=headers)
    return httpx.HTTPStatusError("refused", request=request, response=response)


def caused_by(cause: BaseException) -> httpx.ConnectError:
    error = httpx.ConnectError(str(cause))
    error.__cause__ = cause
    return error


def certificate(code: int, message: str) -> httpx.ConnectError:
    error = ssl.SSLCertVerificationError(1, message)
    error.verify_code, error.verify_message = code, message
    return caused_by(error)


def without_tls() -> httpx.ConnectError:
    error = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")
    error.reason = "WRONG_VERSION_NUMBER"
    return caused_by(error)


def not_activated(extra: str | None = None) -> httpx.HTTPStatusError:
    body = {"code": ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED.value, "detail": "Failed to activate SuperNode."}
    return status(412, body if extra is None else {**body, "extra": extra})


def ahead(seconds: float) -> httpx.HTTPStatusError:
    """A signature that is refused by a server whose clock is behind."""
    theirs = datetime.now(UTC) - timedelta(seconds=seconds)
    return status(401, {"detail": "Invalid SuperNode authentication"}, date=format_datetime(theirs, usegmt=True))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (caused_by(ConnectionRefusedError(111, "Connection refused")), "is not there (Connection refused)"),
        (caused_by(ssl.SSLEOFError(8, "EOF occurred")), "closes connections at once, as a proxy does"),
        (caused_by(ConnectionResetError(104, "Connection reset by peer")), "closes connections at once"),
        (without_tls(), "speaks no TLS (WRONG_VERSION_NUMBER): is it a SuperLink, started without --insecure?"),
        (httpx.ConnectTimeout("the handshake operation timed out"), "does not answer"),
        (httpx.ReadTimeout("timed out"), "does not answer"),
        (status(503), "is not ready yet (HTTP 503)"),
        (status(404, "<html>"), "answers HTTP 404, and not as a SuperLink does"),
        (status(407), "is it a proxy, and its server away?"),
        (ValueError("Invalid protobuf response payload"), "answers, but not as a SuperLink does"),
        (status(401, {"detail": "Invalid SuperNode authentication"}), "do the clocks of the two machines agree?"),
        (not_activated(KEY_IN_USE), "a SuperNode with its key runs, or was killed within the last minute"),
        (not_activated(), "it does not know its key, or a SuperNode"),
        (certificate(10, "certificate has expired"), "not valid by this machine's clock"),
        (certificate(9, "certificate is not yet valid"), f"clock, which says {datetime.now(UTC):%Y}"),
    ],
)  # fmt: skip
def test_what_may_pass_is_told_apart_and_does_not_end_a_client(error, said):
    found = refusal(error, SERVER)
    assert found.passes
    assert not found.is_of_key
    assert found.reason.startswith(SERVER)
    assert said in found.reason
    assert "\n" not in found.reason


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (400.0, r"this machine's clock is (399|40\d) s ahead of the server's"),
        (-3600.0, r"this machine's clock is (3600|359\d) s behind the server's"),
        (0.0, "the server was started anew"),
    ],
)
def test_clocks_that_differ_are_told_by_how_much(seconds, said):
    assert re.search(said, refusal(ahead(seconds), SERVER).reason)


@pytest.mark.parametrize(
    ("error", "said", "of_key"),
    [
        (not_activated(UNKNOWN_KEY), "it does not know its key", True),
        (certificate(20, "unable to get local issuer certificate"), "is not the server that this client's", False),
        (certificate(62, "Hostname mismatch"), "Hostname mismatch", False),
    ],
)
def test_a_key_or_an_authority_that_is_wrong_does_not_pass(error, said, of_key):
    found = refusal(error, SERVER)
    assert (found.passes, found.is_of_key) == (False, of_key)
    assert said in found.reason


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (not_activated(), True),
        (status(403, {"code": 1, "detail": "The current run status does not allow this."}), True),
        (status(500, {"detail": "Internal server error."}), True),
        (status(413), True),  # the same message would be too large again
        (status(500), False),
        (status(500, "[]"), False),
        (status(502, '{"detail": 3}'), False),
        (status(403, "Blocked by the firewall of the hotel"), False),
        (httpx.ConnectError("no route"), False),
        (ValueError("no protobuf"), False),
    ],
)
def test_a_call_that_flower_answered_is_not_made_again_and_any_other_is(error, final):
    assert is_final(error) is final


def test_the_next_second_or_minute_is_no_new_reason_and_another_status_is():
    late, later = (refusal(ahead(seconds), SERVER).reason for seconds in (3600.0, 3607.0))
    assert late != later
    assert gist(late) == gist(later) != gist(refusal(ahead(-3600.0), SERVER).reason)
    assert gist("its clock says 2026-11-30 10:59 UTC (too early)") == gist(
        "its clock says 2026-11-30 11:00 UTC (too early)"
    )
    assert gist(refusal(status(502), SERVER).reason) != gist(refusal(status(503), SERVER).reason)
