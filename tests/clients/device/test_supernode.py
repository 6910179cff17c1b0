"""A SuperNode whose calls get through at last, whatever stands between it and the server."""

import contextlib
import http.server
import logging
import os
import threading
from collections import defaultdict
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import httpx
import pytest
from flwr.proto.fleet_pb2 import (
    ActivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    RegisterNodeFleetResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.supercore.run import RunNotRunningException

from clients.device import supernode
from clients.device.supernode import PatientFleetClient
from clients.device.supervisor import PULSE_VARIABLE, SESSION_VARIABLE
from spatl.deployment.pauses import FIRST_SECONDS, Pauses
from spatl.deployment.superexec import make_secret

PROTOBUF, HTML = "application/protobuf", "text/html"
PORTAL = (200, HTML, b"<html>Welcome to our hotel!</html>")
BAD_WAYS = ["closed", (404, HTML, b"<html>"), (407, HTML, b""), (500, HTML, b""), (502, HTML, b""), PORTAL,
            (200, PROTOBUF, b"\xff\xff\xff"), (301, HTML, b"")]  # fmt: skip
ANSWERS = {
    "register-node": RegisterNodeFleetResponse(node_id=7),
    "activate-node": ActivateNodeResponse(node_id=7),
    "pull-messages": PullMessagesResponse(),
    "send-node-heartbeat": SendNodeHeartbeatResponse(success=True),
}


class Network:
    """A server, and what happens to calls before they get through: by the last part of their paths, in order."""

    def __init__(self) -> None:
        self.trouble, self.calls = defaultdict(list), defaultdict(int)
        network = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                name = self.path.rpartition("/")[2]
                self.rfile.read(int(self.headers["content-length"]))
                network.calls[name] += 1
                content = ANSWERS[name].SerializeToString() if name in ANSWERS else b""
                way = network.trouble[name].pop(0) if network.trouble[name] else (200, PROTOBUF, content)
                if way == "closed":
                    self.close_connection = True
                    return
                code, kind, body = way
                self.send_response(code)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                if code == 301:
                    self.send_header("location", "/portal")
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                self.send_response(200)
                self.send_header("content-type", HTML)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def network(monkeypatch, tmp_path):
    """A server, for which Flower's SuperNode is patient; what that changes in Flower is put back."""
    connection, retry, loop = (
        import_module("flwr.supernode.fleet_http_connection"),
        import_module("flwr.supercore.retry.http_retry"),
        import_module("flwr.supernode.start_client_internal"),
    )
    for module, name in (
        (loop, "time"),
        (connection, "FleetHttpClient"), (connection, "HeartbeatSender"), (retry, "MAX_RETRY_DELAY"),
        (logging.getLogger("flwr"), "filters"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(logging.getLogger("flwr"), "filters", [])
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    monkeypatch.setattr(supernode, "RETRY_SECONDS", 0.01)
    (tmp_path / "pulse").mkdir()
    monkeypatch.setenv(PULSE_VARIABLE, str(tmp_path / "pulse"))
    monkeypatch.setenv(SESSION_VARIABLE, str(tmp_path / "session"))
    supernode.make_patient()
    network = Network()
    yield network
    network.server.shutdown()
    network.server.server_close()


@pytest.mark.usefixtures("network")
def test_flowers_loop_pauses_shortly_after_a_message_and_as_it_would_after_many_questions_in_vain(monkeypatch):
    slept = list[float]()
    monkeypatch.setattr(supernode, "Pauses", lambda growth: Pauses(growth, slept.append))
    supernode.make_patient()
    loop = import_module("flwr.supernode.start_client_internal")
    for seconds in (3, 3, 0.5, *[3] * 20):  # it waits half seconds for its reply
        loop.time.sleep(seconds)
    assert slept[0] == slept[2] == slept[3] == FIRST_SECONDS
    assert slept[1] == slept[4]
    assert slept[-1] == 3


def connected(network):
    """Flower's connection of a SuperNode, without TLS."""
    module = import_module("flwr.supernode.fleet_http_connection")
    return contextlib.contextmanager(module.http_request_response.__wrapped__)(network.address, True)


@pytest.mark.parametrize("call", ["activate-node", "pull-messages"])
def test_a_call_is_made_again_whatever_stands_in_between_answers(network, call, caplog):
    network.trouble[call] = [*BAD_WAYS]
    with caplog.at_level(logging.INFO, "flwr"), connected(network) as (node_id, receive, *_):
        assert node_id == 7
        assert receive() is None
    assert network.calls[call] == len(BAD_WAYS) + 1
    said = [record.getMessage() for record in caplog.records]
    assert not any("Connection attempt failed" in line for line in said)
    assert sum("trying again" in line for line in said) == len(BAD_WAYS)
    assert f"{network.address} answers again" in said


def test_the_same_reason_is_said_once(network, caplog):
    network.trouble["pull-messages"] = ["closed"] * 4
    with caplog.at_level(logging.INFO, "flwr"), connected(network) as (_, receive, *_):
        receive()
    said = [record.getMessage() for record in caplog.records]
    assert sum("trying again" in line for line in said) == 1


def test_what_flower_itself_answers_stays_as_it_is(network):
    network.trouble["pull-messages"] = [(403, "application/json", b'{"code": 1, "detail": "not running"}')]
    with connected(network) as (_, receive, *_), pytest.raises(RunNotRunningException):
        receive()
    assert network.calls["pull-messages"] == 1


def test_a_heartbeat_that_does_not_get_through_is_none_that_is_refused(network):
    network.trouble["send-node-heartbeat"] = [*BAD_WAYS]
    with PatientFleetClient(f"http://{network.address}") as client:
        for _ in BAD_WAYS:
            with pytest.raises(httpx.TransportError):  # which Flower sends again
                client.SendNodeHeartbeat(SendNodeHeartbeatRequest())
        assert client.SendNodeHeartbeat(SendNodeHeartbeatRequest()).success


@pytest.mark.parametrize(
    "answer",
    [(401, "application/json", b'{"detail": "Invalid SuperNode authentication"}'), (200, PROTOBUF, b"")],
    ids=["another session", "no node"],
)
def test_a_heartbeat_that_is_refused_ends_the_process(network, answer, monkeypatch):
    network.trouble["send-node-heartbeat"] = [answer]
    ended = []

    def end(status):
        ended.append(status)
        raise SystemExit(status)

    monkeypatch.setattr(supernode, "end", end)
    with PatientFleetClient(f"http://{network.address}") as client, pytest.raises(SystemExit):
        client.SendNodeHeartbeat(SendNodeHeartbeatRequest())
    assert ended == [1]


def test_a_killed_ones_session_is_ended_before_the_next_begins(network, tmp_path):
    with connected(network):
        pass
    assert (tmp_path / "session").read_text() == "7\n"
    before = network.calls["deactivate-node"]
    with connected(network):
        assert network.calls["deactivate-node"] == before + 1
    (tmp_path / "session").write_text("damaged")
    with connected(network):
        assert network.calls["activate-node"] == 3


def test_each_call_is_seen_in_the_pulse_also_one_that_fails(network, tmp_path):
    asking, heartbeat = tmp_path / "pulse" / "asking", tmp_path / "pulse" / "heartbeat"
    with PatientFleetClient(f"http://{network.address}") as client:
        client.PullMessages(PullMessagesRequest())
        assert not heartbeat.exists()
        os.utime(asking, (1, 1))
        network.trouble["pull-messages"] = ["closed"]
        with pytest.raises(httpx.TransportError):
            client.PullMessages(PullMessagesRequest())
        assert asking.stat().st_mtime > 1
        client.SendNodeHeartbeat(SendNodeHeartbeatRequest())
        assert heartbeat.exists()
        (tmp_path / "pulse" / "asking").unlink()
        (tmp_path / "pulse" / "heartbeat").unlink()
        (tmp_path / "pulse").rmdir()
        client.PullMessages(PullMessagesRequest())  # no reason to ask no more


def test_where_flowers_loop_ends_the_process_does(monkeypatch):
    """Flower's returns; a thread of its web server would go on."""
    ended, flowers = [], import_module("flwr.supernode.cli.flower_supernode")
    monkeypatch.setattr(supernode, "make_patient", lambda: None)
    monkeypatch.setattr(supernode, "ask_for_secret", lambda: None)
    monkeypatch.setattr(supernode, "end", ended.append)
    monkeypatch.setattr(supernode.sys, "argv", ["supernode", "--superlink", "localhost:1"])
    for ending, status in ((None, 1), (SystemExit(0), 0), (SystemExit(3), 3), (RuntimeError("port"), 1)):

        def flower_supernode(ending=ending):
            if ending is not None:
                raise ending

        monkeypatch.setattr(flowers, "flower_supernode", flower_supernode)
        supernode.main()
        assert ended.pop() == status


def test_work_is_given_for_the_secret_though_flower_starts_the_superexec_itself(monkeypatch, tmp_path):
    flowers, given = import_module("flwr.supernode.cli.flower_supernode"), []
    monkeypatch.setattr(flowers, "_start_supernode_http_api", lambda config, factory: given.append((config, factory)))
    ((name, path),) = make_secret(tmp_path).items()
    monkeypatch.setenv(name, path)
    supernode.ask_for_secret()
    monkeypatch.setattr(supernode.sys, "argv", ["flower-supernode", "--insecure", "--superlink", "localhost:1"])
    config = flowers._parse_supernode_lifespan_config()
    assert config.superexec_auth_secret is None
    flowers._start_supernode_http_api(config, "factory")
    ((secured, factory),) = given
    assert secured == replace(config, superexec_auth_secret=Path(path).read_bytes())
    assert factory == "factory"
