"""A deployment by its three commands: what is made, who gets in, and that it computes what `inline` does."""

import asyncio
import contextlib
import io
import os
import shutil
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from flwr.proto.control_pb2 import ListNodesRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, RegisterNodeFleetRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from clients.admission import read_private_key
from server.deployment.gate import OPEN_PATH, TOKEN_HEADER, Gate
from spatl.console.main import main
from spatl.deployment.keys import UNKNOWN_KEY
from spatl.deployment.processes import descendants, free_port
from spatl.runs.records import read_lines
from tests.support.deployments import await_text, started
from tests.support.federations import run_tiny, tiny_config

NUM_CLIENTS = 2
CONFIG = tiny_config(
    rounds=2,
    data={"name": "synthetic", "options": {"num_examples": 200, "image_size": 8}},
    partition={"num_clients": NUM_CLIENTS},
    model={"name": "cnn", "options": {"channels": [4, 6], "hidden": 12}},
)
PRIVATE_PORT, PUBLIC_PORT, TOKEN = 1000, 2000, "secret"
SECONDS = 600


# What `init` makes


def initialise(directory: Path, *more: str) -> int:
    config = directory.parent / f"{directory.name}.yaml"
    config.write_text(CONFIG.to_yaml())
    return main(["deploy", "init", str(directory), str(config), *more])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("deploy") / "made"
    assert initialise(directory, "--address", f"localhost:{free_port()}", "--name", "10.1.2.3") == 0
    return directory


@pytest.mark.slow
def test_nothing_of_a_deployment_is_open_to_other_users(made):
    assert {path.stat().st_mode & 0o777 for path in (made, *made.rglob("*")) if path.is_dir()} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in made.rglob("*") if path.is_file()} == {0o600}


def test_each_machine_gets_its_own_key_and_no_other(made):
    keys = [path.relative_to(made).as_posix() for path in made.rglob("*") if b"PRIVATE KEY" in _content(path)]
    assert sorted(keys) == ["ca/ca.key", *(f"client-{client}/client.key" for client in range(NUM_CLIENTS)),
                            "server/server.key"]  # fmt: skip
    assert len({(made / key).read_bytes() for key in keys}) == len(keys)


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def test_the_servers_certificate_is_good_for_its_names_and_loopback(made):
    certificate = x509.load_pem_x509_certificate((made / "server" / "server.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"localhost"}
    assert {str(each) for each in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "10.1.2.3"}


def test_keys_are_never_overwritten(made, capsys):
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    assert initialise(made) == 2
    assert "already there" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["server", "{made}/client-0"], "not the directory of a server"),
        (["client", "{made}/server"], "not the directory of a client"),
        (["client", "{made}/client-0", "--budget", "keep_ratio"], "expects KIND=LIMIT"),
        (["client", "{made}/client-0", "--budget", "keep_ratio=2"], "less than or equal to 1"),
        (["client", "{made}/client-0", "--budget", "keep=0.5"], "unknown key"),
        (["client", "{made}/client-0", "--device", "abacus"], "must be auto, cpu, cuda"),
        (["client", "{made}/client-0", "--data-dir", "{made}/nowhere"], "is not there"),
        (["server", "{made}/server", "--bind", "203.0.113.1"], "cannot listen on 203.0.113.1"),
    ],
)
def test_a_mistake_ends_with_one_line_and_status_2(made, arguments, message, tmp_path, capsys):
    more = ["--out", str(tmp_path / "run")] if arguments[0] == "server" else []
    assert main(["deploy", *(argument.format(made=made) for argument in arguments), *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# Who the gate lets through


def status_of(gate: Gate, path: str, port: int, token: str | None = None) -> int | None:
    """What the gate answers a request; None if it passes it on."""
    sent: list[dict] = []

    async def send(event):
        sent.append(event)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    headers = [] if token is None else [(TOKEN_HEADER.encode(), token.encode())]
    scope = {"type": "http", "path": path, "server": ("127.0.0.1", port), "headers": headers}
    asyncio.run(gate(scope, receive, send))
    return sent[0]["status"] if sent else None


@pytest.fixture
def gate() -> Gate:
    async def app(scope, receive, send):
        pass

    return Gate(app, private_port=PRIVATE_PORT, token=TOKEN)


@pytest.mark.parametrize(
    "path",
    ["/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task", OPEN_PATH, "/docs", "/health",
     "/", "/v1/fleet"],
)  # fmt: skip
def test_the_network_sees_nothing_but_the_fleet_api_even_with_the_token(gate, path):
    assert status_of(gate, path, PUBLIC_PORT, TOKEN) == 404


def test_supernodes_are_told_to_try_again_until_the_gate_is_opened(gate):
    assert status_of(gate, "/v1/fleet/activate-node", PUBLIC_PORT) == 503
    assert status_of(gate, OPEN_PATH, PRIVATE_PORT, TOKEN) == 200
    assert status_of(gate, "/v1/fleet/activate-node", PUBLIC_PORT) is None


@pytest.mark.parametrize("path", ["/v1/control/start-run", "/v1/fleet/activate-node", OPEN_PATH, "/docs"])
@pytest.mark.parametrize("token", [None, "", "secre", "secrets"])
def test_other_users_of_the_servers_machine_need_the_token(gate, path, token):
    assert status_of(gate, path, PRIVATE_PORT, token) == 403


def test_flowers_own_tasks_come_through_the_private_socket(gate):
    assert status_of(gate, "/v1/runtime/pull-task-input", PRIVATE_PORT) is None
    assert status_of(gate, "/v1/control/start-run", PRIVATE_PORT, TOKEN) is None


# A federation on loopback


@dataclass(frozen=True)
class Deployed:
    """A deployment that has run, and what intruders were answered while the server waited for its clients."""

    directory: Path
    inline: Path
    answers: dict[str, str]
    logs: dict[str, str]
    watched: "Watched"


class Watched:
    """Looks at the processes below this one, as another user of the machine may, while a deployment runs.

    Attributes:
        arguments: All that were seen.
        answers: What each API on loopback answered who asked it for work.
    """

    def __init__(self) -> None:
        self.arguments: set[tuple[str, ...]] = set()
        self.answers: dict[str, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Watched":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            for number in descendants(os.getpid()):
                with contextlib.suppress(OSError):  # it has ended
                    self._look(tuple(Path(f"/proc/{number}/cmdline").read_text().split("\0")))

    def _look(self, arguments: tuple[str, ...]) -> None:
        self.arguments.add(arguments)
        if "--runtime-api-address" in arguments:
            address = arguments[arguments.index("--runtime-api-address") + 1]
            if address not in self.answers:
                scheme = "http" if "--insecure" in arguments else "https"
                with contextlib.suppress(httpx.HTTPError):  # it does not listen yet
                    self.answers[address] = httpx.post(
                        f"{scheme}://{address}/v1/runtime/acquire-task",
                        content=AcquireTaskRequest().SerializeToString(),
                        headers={"content-type": "application/protobuf"},
                        verify=False,
                    ).status_code


def told_by_command(directory: Path) -> str:
    """How the command of a client that does not belong to a federation ends and what it says."""
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        status = main(["deploy", "client", str(directory)])
    return f"status {status}\n{said.getvalue()}"


def told_supernode(url: str, key: Path, ca: Path) -> str:
    """What a SuperNode is told that asks to be activated, by Flower's own client."""
    private = read_private_key(key)
    request = ActivateNodeRequest(public_key=public_key_to_bytes(private.public_key()), heartbeat_interval=30.0)
    own = [NodeAuthHttpInterceptor(private, private.public_key())]
    with FleetHttpClient(url, verify=ssl.create_default_context(cafile=str(ca)), interceptors=own) as fleet:
        try:
            return f"SuperNode ID {fleet.ActivateNode(request).node_id}"
        except httpx.HTTPStatusError as error:
            return f"{error.response.status_code} {error.response.text}"
        except httpx.HTTPError as error:
            return str(error)


def intrusions(directory: Path, address: str, stranger: Path) -> dict[str, str]:
    """What the server answers those who do not belong to it."""
    own, ca = directory / "client-0", directory / "client-0" / "ca.pem"
    unknown_key, wrong_ca = stranger.parent / "unknown-key", stranger.parent / "wrong-ca"
    for copy, key, trusted in ((unknown_key, stranger, own), (wrong_ca, own, stranger)):
        copy.mkdir()
        for name, place in (
            ("client.json", own), ("device.yaml", own), ("client.key", key), ("ca.pem", trusted),
        ):  # fmt: skip
            shutil.copy(place / name, copy)
    context = ssl.create_default_context(cafile=str(ca))
    with httpx.Client(
        base_url=f"https://{address}", verify=context, headers={"content-type": "application/protobuf"}
    ) as http:
        outside = {
            path: str(http.post(path, content=ListNodesRequest().SerializeToString()).status_code)
            for path in ("/v1/control/list-nodes", "/v1/control/start-run", "/v1/runtime/acquire-task", OPEN_PATH,
                         "/v1/fleet/pull-messages")
        }  # fmt: skip
    private, public = generate_key_pairs()
    with FleetHttpClient(
        f"https://{address}", verify=context, interceptors=[NodeAuthHttpInterceptor(private, public)]
    ) as fleet:
        with pytest.raises(httpx.HTTPStatusError) as refused:
            fleet.RegisterNode(RegisterNodeFleetRequest(public_key=public_key_to_bytes(public)))
        outside["registering oneself"] = refused.value.response.text  # as a SuperNode without a key does
    return {
        **outside,
        "unknown key": told_by_command(unknown_key),
        "wrong CA": told_by_command(wrong_ca),
        "SuperNode, unknown key": told_supernode(f"https://{address}", stranger / "client.key", ca),
        "SuperNode, wrong CA": told_supernode(f"https://{address}", own / "client.key", stranger / "ca.pem"),
        "SuperNode, no TLS": told_supernode(f"http://{address}", own / "client.key", ca),
    }


@pytest.fixture(scope="module")
def deployed(tmp_path_factory) -> Deployed:
    base = tmp_path_factory.mktemp("deployed")
    directory, address = base / "federation", f"127.0.0.1:{free_port()}"
    assert initialise(directory, "--address", address) == 0
    assert initialise(base / "stranger") == 0
    log = base / "server.log"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(started("deploy", "server", str(directory / "server"), log=log))
        await_text("0 of 2 clients are connected", log, server, seconds=SECONDS)
        answers = intrusions(directory, address, base / "stranger" / "client-0")
        assert "1 of 2" not in log.read_text()
        for client in range(NUM_CLIENTS):
            own, cold = base / f"client-{client}.log", ["--cold"] if client == 0 else []
            stack.enter_context(started("deploy", "client", str(directory / f"client-{client}"), *cold, log=own))
        watched = stack.enter_context(Watched())
        assert server.wait(SECONDS) == 0, log.read_text()
    run_tiny(CONFIG, base / "inline")
    logs = {path.stem: path.read_text() for path in base.glob("*.log")}
    return Deployed(directory, base / "inline", answers, logs, watched)


@pytest.mark.slow
def test_nobody_on_the_machine_is_given_work_without_the_secret_or_sees_a_token(deployed):
    """By the server's API on loopback and each device's; tokens are in files, whose names are arguments."""
    assert list(deployed.watched.answers.values()) == [401] * (1 + NUM_CLIENTS)
    arguments = deployed.watched.arguments
    assert not any("--token" in each for each in arguments)
    files = [Path(each[each.index("--token-file") + 1]) for each in arguments if "--token-file" in each]
    assert {deployed.directory / f"client-{client}" / "flower" for client in range(NUM_CLIENTS)} <= {
        path.parent for path in files
    }
    assert any("flwr-serverapp" in " ".join(each) for each in arguments if "--token-file" in each)
    secrets = [path.read_bytes() for path in deployed.directory.rglob("superexec.secret")]
    assert len(set(secrets)) == NUM_CLIENTS


@pytest.mark.slow
def test_what_a_deployment_leaves_is_its_owners_alone(deployed):
    found = [deployed.directory, *deployed.directory.rglob("*")]
    assert {path.name for path in found if not path.is_symlink() and path.stat().st_mode & 0o077} == set()
    assert {
        "state.safetensors",
        "history.jsonl",
        "server.checkpoint",
        "flower.log",
        "registration.json",
        "node.toml",
    } <= {path.name for path in found}
    assert not list(deployed.directory.rglob("token-*"))


@pytest.mark.slow
def test_a_federation_with_tls_and_authentication_gives_the_encoders_of_inline(deployed):
    inline, own = (
        [row["encoder_fingerprint"] for row in read_lines(directory / "history.jsonl")]
        for directory in (deployed.inline, deployed.directory / "server" / "run")
    )
    assert own == inline
    assert len(set(own)) == CONFIG.rounds


@pytest.mark.slow
def test_each_devices_state_lies_in_its_own_directory_and_nowhere_else(deployed):
    for client in range(NUM_CLIENTS):
        states = list((deployed.directory / f"client-{client}" / "state").glob("*/state.safetensors"))
        assert len(states) == 1
    left = [path.name for path in (deployed.directory / "server").rglob("*.safetensors")]
    assert left == ["model.safetensors"]  # the federation's, of which nothing is a client's own


@pytest.mark.slow
def test_the_server_shows_its_progress_and_closes_with_the_table(deployed):
    said = deployed.logs["server"]
    assert "2 of 2 clients are connected" in said
    assert "round 2/2" in said
    assert "accuracy, mean over clients" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "expected"),
    [
        ("/v1/control/list-nodes", "404"),
        ("/v1/control/start-run", "404"),
        ("/v1/runtime/acquire-task", "404"),
        (OPEN_PATH, "404"),
        ("/v1/fleet/pull-messages", "401"),
        ("registering oneself", "must be registered via the CLI"),
        ("unknown key", "it does not know its key"),
        ("wrong CA", "is not the server that"),
        ("SuperNode, unknown key", f'"extra":"{UNKNOWN_KEY}"'),
        ("SuperNode, wrong CA", "certificate verify failed"),
        ("SuperNode, no TLS", "disconnected without sending a response"),
    ],
)
def test_who_does_not_belong_to_it_gets_nowhere(deployed, who, expected):
    said = deployed.answers[who]
    assert expected in said
    assert "SuperNode ID" not in said


@pytest.mark.slow
@pytest.mark.parametrize("who", ["unknown key", "wrong CA"])
def test_a_client_that_would_get_nowhere_says_so_in_one_line(deployed, who):
    status, *lines = deployed.answers[who].splitlines()
    assert status == "status 2"
    assert len(lines) == 1
