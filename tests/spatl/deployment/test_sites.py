"""The directories of a deployment: addresses, permissions, and what may be read from them."""

import os

import pytest

from spatl.deployment.sites import (
    Address,
    ClientSite,
    check_host,
    check_private,
    make_private,
    read_client_site,
    read_server_site,
    write_private,
    write_site,
)
from spatl.errors import ConfigError, SpatlError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:9092", "127.0.0.1", 9092), ("example.org:1", "example.org", 1), ("[::1]:65535", "::1", 65535)],
)
def test_an_address_is_read_and_written_alike(text, host, port):
    address = Address.parse(text)
    assert (address.host, address.port, str(address)) == (host, port, text)


@pytest.mark.parametrize(
    "text",
    ["", "host", ":9092", "host:", "host:0", "host:65536", "host:x", "::1:9092", "[host]:1", "a b:1", "http://a:1"],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ConfigError, match="expected an address"):
        Address.parse(text)


@pytest.mark.parametrize("host", ["my_host.local", "a", "A-1.example.org.", "xn--bcher-kva.example", "::1", "10.0.0.1"])
def test_a_host_is_an_address_or_a_name_that_a_certificate_can_be_good_for(host):
    check_host(host)


@pytest.mark.parametrize("host", ["", "*", "a b", "-a", "a-", "a..b", "192.168.1.300", "a" * 64, "a." * 130, "a/b"])
def test_what_is_no_host_is_refused(host):
    with pytest.raises(ConfigError, match="expected an IP address, or a host's name"):
        check_host(host)


def test_an_international_name_is_told_in_the_letters_of_certificates():
    with pytest.raises(ConfigError, match=r"in these letters it is xn--bcher-kva\.example$"):
        Address.parse("b\u00fccher.example:9092")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("10.0.0.1", False), ("a.b", False)],
)
def test_loopback_is_what_no_other_machine_reaches(host, loopback):
    assert Address(host, 1).is_loopback is loopback


def test_files_and_directories_are_their_owners_alone_whatever_the_umask(tmp_path):
    before = os.umask(0o000)
    try:
        directory = make_private(tmp_path / "made")
        write_private(directory / "secret", b"x")
    finally:
        os.umask(before)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "secret").stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    write_private(tmp_path / "secret", b"first")
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "secret", b"second")
    assert (tmp_path / "secret").read_bytes() == b"first"


def test_a_key_that_others_may_read_is_refused(tmp_path):
    write_private(tmp_path / "secret", b"x")
    check_private(tmp_path / "secret")
    (tmp_path / "secret").chmod(0o640)
    with pytest.raises(SpatlError, match=r"open to other users.*mode 640.*chmod 600"):
        check_private(tmp_path / "secret")


def test_a_client_knows_what_it_was_made_for_and_is_no_server(tmp_path):
    site = ClientSite("127.0.0.1:9092", client=3, num_clients=4)
    write_site(tmp_path, site)
    assert read_client_site(tmp_path) == site
    with pytest.raises(ConfigError, match=r"not the directory of a server.*server\.json: No such file"):
        read_server_site(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"address": 1, "client": 0, "num_clients": 1}'])
def test_a_damaged_file_is_told_in_one_line(tmp_path, content):
    (tmp_path / "client.json").write_text(content)
    with pytest.raises(ConfigError, match=r"client\.json"):
        read_client_site(tmp_path)
