"""Files with which a server cannot start, and a SuperLink that has gone: each is named in one line."""

import datetime
from types import SimpleNamespace

import httpx
import pytest

from server.deployment.certificates import check_server_pair, make_authority, make_server_pair, pem
from server.deployment.control import LinkLost, StartedSuperLink
from spatl.errors import SpatlError


@pytest.fixture(scope="module")
def two_federations():
    """The files of two federations by name: of each an authority, and a server's certificate and key."""
    made = []
    for _ in range(2):
        authority = make_authority()
        pair = make_server_pair(authority, ["localhost"])
        made.append({"ca.pem": pem(authority.certificate), "server.pem": pair.public, "server.key": pair.private})
    return made


def check(directory, files, *, days=0.0):
    for name, content in files.items():
        (directory / name).write_bytes(content)
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    check_server_pair(*(directory / name for name in ("ca.pem", "server.pem", "server.key")), now=now)


def test_the_files_of_one_federation_belong_together(two_federations, tmp_path):
    for files in two_federations:
        check(tmp_path, files)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("server.key", "server.key is not the key of "),
        ("server.pem", "server.key is not the key of "),
        ("ca.pem", "which the clients trust: one belongs to another federation"),
    ],
)
def test_a_file_of_another_federation_is_named(two_federations, name, said, tmp_path):
    first, second = two_federations
    with pytest.raises(SpatlError, match=said) as refused:
        check(tmp_path, first | {name: second[name]})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("days", "said"), [(4000, "expired on 20"), (-2, "clock says .*: set the clock")])
def test_a_certificate_that_is_not_valid_now_is_named_with_its_day(two_federations, days, said, tmp_path):
    with pytest.raises(SpatlError, match=rf"server\.pem .*{said}"):
        check(tmp_path, two_federations[0], days=days)


@pytest.mark.parametrize("name", ["ca.pem", "server.pem", "server.key"])
def test_a_file_that_is_damaged_or_not_there_is_one_line(two_federations, name, tmp_path):
    with pytest.raises(SpatlError, match="is damaged"):
        check(tmp_path, two_federations[0] | {name: b"nothing"})
    (tmp_path / name).unlink()
    with pytest.raises(SpatlError, match=rf"cannot read .*{name}"):
        check(tmp_path, {other: each for other, each in two_federations[0].items() if other != name})


class Silent:
    """The Control API of a SuperLink that does not answer."""

    def ListNodes(self, request):  # noqa: N802  (as Flower names it)
        raise httpx.ReadTimeout("timed out")

    RegisterNode = ListNodes

    def post(self, path, *, content):
        raise httpx.ReadTimeout("timed out")


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (None, r"the SuperLink does not answer any more \(ReadTimeout: timed out\)"),
        (-9, "the SuperLink was ended by signal 9"),
        (1, "the SuperLink has ended with status 1"),
    ],
)
def test_a_superlink_that_hangs_or_has_gone_is_one_line(status, said, tmp_path):
    link = StartedSuperLink(SimpleNamespace(poll=lambda: status), Silent(), Silent(), tmp_path / "flower.log")
    for ask in (
        lambda: link.await_clients(2, lambda line: None, run=tmp_path, seconds=1.0, enough=1, give_up=None),
        lambda: link.register({0: b"key"}),
        lambda: link.open([b"key"]),
    ):
        with pytest.raises(LinkLost, match=rf"{said}.*flower\.log"):
            ask()
