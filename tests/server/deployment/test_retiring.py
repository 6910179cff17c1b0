"""`spatl deploy retire`, and a server that follows who was added and retired: by fakes of what lets keys in."""

from pathlib import Path

import pytest

from server.deployment.following import Following
from server.deployment.keys import read_public_keys
from spatl.console.main import main
from spatl.deployment.sites import ServerSite, read_server_site, replace_site
from spatl.errors import ConfigError
from spatl.runs.members import Members, read_members
from tests.support.own_data import own_config


def initialise(base: Path, config) -> Path:
    (base / "config.yaml").write_text(config.to_yaml())
    assert main(["deploy", "init", str(base / "federation"), str(base / "config.yaml")]) == 0
    return base / "federation"


@pytest.fixture
def trio(tmp_path) -> Path:
    """A deployment of three devices with data of their own."""
    return initialise(tmp_path, own_config(server={"min_replies": 2}))


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_client_is_out_its_key_is_gone_and_its_number_nobody_elses(trio, capsys):
    assert main(["deploy", "retire", str(trio), "1"]) == 0
    assert "client 1 was retired, 2 are left" in capsys.readouterr().out
    site = read_server_site(trio / "server")
    assert (site.num_clients, site.retired, site.clients) == (3, (1,), (0, 2))
    assert not (trio / "server" / "clients" / "client-1.pub").exists()
    assert list(read_public_keys(trio / "server", site.clients)) == [0, 2]
    assert main(["deploy", "add-client", str(trio)]) == 0
    assert read_server_site(trio / "server").clients == (0, 2, 3)
    assert main(["deploy", "retire", str(trio / "server"), "0"]) == 0
    assert read_server_site(trio / "server").clients == (2, 3)


@pytest.mark.parametrize(
    ("client", "said"),
    [
        ("3", "client 3 is none of its clients 0 to 2"),
        ("-1", "client -1 is none of its clients 0 to 2"),
        ("1", "client 1 was retired before"),
        ("0", "without client 0 it has 1 clients, and a round needs 2 (server.min_replies)"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(trio, client, said, capsys):
    assert main(["deploy", "retire", str(trio), "1"]) == 0
    before = contents(trio)
    capsys.readouterr()
    assert main(["deploy", "retire", str(trio), "--", client]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert contents(trio) == before


def test_of_clients_that_agreed_on_one_set_of_channels_none_can_be_taken_out(tmp_path, capsys):
    federation = initialise(tmp_path, own_config(method="ssfl"))
    assert main(["deploy", "retire", str(federation), "1"]) == 2
    assert "agreed on their channels before the first round, so that none can be taken out" in capsys.readouterr().err


@pytest.mark.parametrize("retired", [[7], ["a"], [-1], [True]])
def test_numbers_that_are_no_clients_are_no_site(trio, retired):
    replace_site(trio / "server", ServerSite("127.0.0.1:9092", 3, tuple(retired)))
    with pytest.raises(ConfigError, match="expected numbers of clients as retired"):
        read_server_site(trio / "server")


class Link:
    """What a SuperLink would do."""

    def __init__(self):
        self.opened, self.gone, self.registered = [], [], []

    def register(self, keys):
        self.registered += keys
        return {client: 100 + client for client in keys}

    def unregister(self, nodes):
        self.gone += nodes

    def open(self, keys):
        self.opened.append(set(keys))


@pytest.fixture
def followed(trio, tmp_path):
    """A server that has started, what lets its keys in, what it says, and the run."""
    link, said, run, server = Link(), [], tmp_path / "run", trio / "server"
    run.mkdir()
    site = read_server_site(server)
    keys = read_public_keys(server, site.clients)
    following = Following(server, run, link, site, keys=keys, nodes=link.register(keys), say=said.append)
    return following, link, said, run


def test_who_is_added_is_let_in_and_who_is_retired_not_and_the_run_is_told(trio, followed):
    following, link, said, run = followed
    following.look()
    assert (link.opened, said, read_members(run)) == ([], [], Members({0: 100, 1: 101, 2: 102}))
    assert main(["deploy", "add-client", str(trio), "--count", "2"]) == 0
    following.look()
    assert read_members(run) == Members({client: 100 + client for client in range(5)})
    keys = read_public_keys(trio / "server", range(5))
    assert link.opened == [set(keys.values())]
    assert main(["deploy", "retire", str(trio), "1"]) == 0
    following.look()
    following.look()
    assert read_members(run) == Members({0: 100, 2: 102, 3: 103, 4: 104}, (1,))
    assert link.gone == [101]
    assert link.opened[1:] == [set(keys.values()) - {keys[1]}]
    assert [line[:20] for line in said] == ["clients 3, 4 were ad", "clients 1 were retir"]


def test_what_cannot_be_read_is_said_once_and_followed_when_it_can_be(trio, followed):
    following, link, said, run = followed
    site = read_server_site(trio / "server")
    replace_site(trio / "server", ServerSite(site.address, 4))  # whose key is not there
    following.look()
    following.look()
    (line,) = said
    assert "clients that were added or retired are not followed: cannot read" in line
    assert read_members(run) == Members({0: 100, 1: 101, 2: 102})
    replace_site(trio / "server", site)
    assert main(["deploy", "add-client", str(trio)]) == 0
    following.look()
    assert link.registered == [0, 1, 2, 3]


def test_without_keys_nobody_is_followed(trio, tmp_path):
    link, site = Link(), read_server_site(trio / "server")
    following = Following(trio / "server", tmp_path, link, site, keys=None, nodes={}, say=print)
    assert main(["deploy", "add-client", str(trio)]) == 0
    following.look()
    assert (link.registered, read_members(tmp_path)) == ([], Members())
