"""`spatl deploy add-client`: what it makes, what it refuses, and that the next start of the server takes them in."""

import hashlib
import logging
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

import clients.admission
import clients.deploy
import server.deployment.adding
from clients.admission import await_server
from clients.device.refusals import Refusal
from server.deployment.keys import read_public_keys
from spatl.config.loading import load_config
from spatl.console.main import main
from spatl.deployment.sites import Address, ClientSite, read_client_site, read_server_site, write_site
from spatl.errors import SpatlError
from spatl.json_files import read_json
from spatl.runs.directory import serving_run
from spatl.runs.records import read_lines
from tests.support.federations import tiny_config
from tests.support.own_data import check_devices_control, own_config, serve_devices, write_data

EXAMPLES = {0: 120, 1: 72, 2: 36}


def initialise(base: Path, config) -> Path:
    (base / "config.yaml").write_text(config.to_yaml())
    assert main(["deploy", "init", str(base / "federation"), str(base / "config.yaml")]) == 0
    return base / "federation"


@pytest.fixture
def federation(devices) -> Path:
    """A deployment of three devices with data of their own."""
    config = own_config(method="spatl", selection={"selector": "update"})
    return initialise(devices, config)


def contents(directory: Path) -> dict[str, tuple[int, str]]:
    """Rights and content of all that lies in a directory."""
    found = {}
    for path in sorted(directory.rglob("*")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(directory))] = path.stat().st_mode & 0o777, digest
    return found


# What it makes


@pytest.mark.parametrize("place", [".", "server"])
def test_a_new_client_gets_what_the_others_have_and_the_server_its_public_key(federation, place, capsys):
    before = contents(federation)
    assert main(["deploy", "add-client", str(federation / place)]) == 0
    after = contents(federation)
    grown = {"server/server.json", "server/config.yaml"}
    assert {name for name, each in before.items() if after[name] != each} == grown
    assert after.keys() - before.keys() == {
        "client-3", "client-3/ca.pem", "client-3/client.json", "client-3/client.key", "client-3/device.yaml",
        "server/clients/client-3.pub",
    }  # fmt: skip
    assert {mode for mode, digest in after.values()} == {0o700, 0o600}
    assert all(bool(digest) == (mode == 0o600) for mode, digest in after.values())
    assert after["client-3/ca.pem"] == after["client-0/ca.pem"]
    private = load_ssh_private_key((federation / "client-3" / "client.key").read_bytes(), None)
    public = load_ssh_public_key((federation / "server" / "clients" / "client-3.pub").read_bytes())
    assert private.public_key() == public
    assert read_server_site(federation / "server").num_clients == 4
    assert load_config(federation / "server" / "config.yaml").partition.num_clients == 4
    assert read_client_site(federation / "client-3") == ClientSite("127.0.0.1:9092", 3, 4, added=True)
    assert read_client_site(federation / "client-0") == ClientSite("127.0.0.1:9092", 0, 3)
    said = capsys.readouterr().out
    assert "1 client was added; the federation has 4" in said
    assert f"  {federation / 'client-3'}" in said
    assert "spatl deploy client client-3 --data-dir PATH" in said
    assert f"spatl deploy server {federation / 'server'} --resume" in said
    assert "PRIVATE" not in said


def test_several_at_once_and_again_are_numbered_on(federation):
    assert main(["deploy", "add-client", str(federation), "--count", "2"]) == 0
    assert main(["deploy", "add-client", str(federation)]) == 0
    assert read_server_site(federation / "server").num_clients == 6
    assert [read_client_site(federation / f"client-{each}").client for each in (3, 4, 5)] == [3, 4, 5]
    assert len(set(read_public_keys(federation / "server", range(6)).values())) == 6


def test_a_server_that_runs_is_not_disturbed(federation):
    with serving_run(federation / "server" / "run"):
        assert main(["deploy", "add-client", str(federation)]) == 0


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{federation}", "--count", "0"], "--count must be at least 1, got 0"),
        (["{federation}", "--count", "-2"], "--count must be at least 1, got -2"),
        (["{federation}/client-0"], "is no deployment: neither server.json nor server/server.json is there"),
        (["{federation}/nowhere"], "is no deployment"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(federation, arguments, said, capsys):
    before = contents(federation)
    refused([each.format(federation=federation) for each in arguments], said, capsys)
    assert contents(federation) == before


def refused(arguments, said, capsys):
    capsys.readouterr()
    assert main(["deploy", "add-client", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["client-4", "server/clients/client-4.pub"])
def test_a_name_that_is_taken_is_one_line_and_changes_nothing(federation, name, capsys):
    (federation / name).write_text("mine")
    before = contents(federation)
    refused([str(federation), "--count", "2"], f"{federation / name} is already there", capsys)
    assert contents(federation) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "said"),
    [
        (tiny_config(), "partition.name is iid, which gives out shares of one data set"),
        (own_config(method="ssfl"), "agree on their channels before the first round, so that none can be added"),
    ],
    ids=["shares of one data set", "one set of channels"],
)
def test_a_federation_that_cannot_grow_is_one_line(tmp_path, config, said, capsys):
    federation = initialise(tmp_path, config)
    before = contents(federation)
    refused([str(federation)], said, capsys)
    assert contents(federation) == before


def test_what_fails_in_between_is_undone(federation, monkeypatch, capsys):
    def fails(directory, site):
        raise OSError(28, "No space left on device", str(directory))

    before = contents(federation)
    with monkeypatch.context() as patch:
        patch.setattr(server.deployment.adding, "replace_site", fails)
        refused([str(federation), "--count", "2"], "No space left on device", capsys)
    assert contents(federation) == before
    assert main(["deploy", "add-client", str(federation)]) == 0


# What the server makes of it


@pytest.fixture
def serve(link, devices, federation, monkeypatch):
    """`spatl deploy server`, whose devices are in this process, but for those that are away."""

    def command(*more, away=()):
        def run(config, directory, say, *, resume, nodes, longest_step, follow):
            serve_devices(config, devices, run=directory, resume=resume, absent=away)

        monkeypatch.setattr(link, "run", run, raising=False)
        return main(["deploy", "server", str(federation / "server"), *more])

    return command


@pytest.mark.slow
def test_the_next_start_with_more_rounds_takes_them_in_and_c_stays_the_weighted_sum(serve, federation, devices, capsys):
    run = federation / "server" / "run"
    assert serve() == 0
    assert main(["deploy", "add-client", str(federation)]) == 0
    write_data(devices / "3.npz", 100, range(4), seed=3)
    (run / "report.html").touch()
    assert serve("--resume") == 0
    assert "clients that were added since take part in more rounds: --set rounds=N" in capsys.readouterr().out
    assert load_config(run / "config.yaml").partition.num_clients == 3
    assert serve("--resume", "--set", "rounds=4") == 0
    config = load_config(run / "config.yaml")
    assert (config.rounds, config.partition.num_clients) == (4, 4)
    assert [row["participants"] for row in read_lines(run / "history.jsonl")] == [3, 3, 4, 4]
    check_devices_control(devices, config, {**EXAMPLES, 3: 60}, run=run)


@pytest.mark.slow
def test_one_that_is_not_there_yet_is_absent_by_name_and_comes_with_the_next_start(serve, federation, devices):
    run = federation / "server" / "run"
    assert serve() == 0
    assert main(["deploy", "add-client", str(federation)]) == 0
    write_data(devices / "3.npz", 100, range(4), seed=3)
    assert serve("--resume", "--set", "rounds=3", away=[3]) == 0
    assert read_json(run / "summary.json")["absent"] == {"3": "it did not connect in 0.2 s"}
    assert serve("--resume", "--set", "rounds=5") == 0
    assert [row["participants"] for row in read_lines(run / "history.jsonl")] == [3, 3, 3, 4, 4]
    check_devices_control(devices, load_config(run / "config.yaml"), {**EXAMPLES, 3: 60}, run=run)


@pytest.mark.slow
def test_a_command_that_was_killed_before_the_config_was_written_has_added_them_all_the_same(
    serve, federation, devices
):
    before = (federation / "server" / "config.yaml").read_bytes()
    assert main(["deploy", "add-client", str(federation)]) == 0
    write_data(devices / "3.npz", 100, range(4), seed=3)
    (federation / "server" / "config.yaml").write_bytes(before)
    assert serve() == 0
    assert read_json(federation / "server" / "run" / "summary.json")["num_clients"] == 4


@pytest.mark.slow
def test_a_run_with_more_clients_than_the_deployment_is_one_line(serve, federation, capsys):
    assert serve() == 0
    (federation / "server" / "server.json").unlink()
    write_site(federation / "server", server.deployment.adding.ServerSite("127.0.0.1:9092", 2))
    assert serve("--resume", "--set", "rounds=3") == 2
    assert "has 3 clients, the deployment 2" in capsys.readouterr().err


# What the device does before the server knows it


def let_in_at(number, monkeypatch):
    """The server lets a client in when it is asked for so many times; how long is waited in between."""
    asked, waited = [], []

    def check(address, ca, key, *, session):
        asked.append(address)
        if len(asked) < number:
            return Refusal("the server does not let this client in: it does not know its key", False, True)
        return None

    monkeypatch.setattr(clients.admission, "check_server", check)
    monkeypatch.setattr(clients.admission.time, "sleep", waited.append)
    return asked, waited


def test_one_that_was_added_waits_until_it_is_known_and_says_once_for_what(monkeypatch, caplog):
    asked, waited = let_in_at(4, monkeypatch)
    with caplog.at_level(logging.WARNING):
        await_server(Address("localhost", 9092), Path("ca.pem"), None, added=True)
    assert (len(asked), len(waited)) == (4, 3)
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("waiting: the server does not let this client in: it does not know its key")
    assert "from its next start on (spatl deploy server DIR --resume)" in said


def test_any_other_does_not_wait(monkeypatch):
    asked, waited = let_in_at(2, monkeypatch)
    with pytest.raises(SpatlError, match="it does not know its key"):
        await_server(Address("localhost", 9092), Path("ca.pem"), None, added=False)
    assert (len(asked), waited) == (1, [])
