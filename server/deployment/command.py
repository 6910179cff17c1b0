"""`spatl deploy init` and `spatl deploy server`: the keys of a federation, and the machine that runs it.

The SuperLink is `server.deployment.superlink`'s, which shows the network its Fleet API alone.
"""

import contextlib
import hashlib
import logging
import os
import secrets
import shlex
import ssl
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, RegisterNodeRequest, StartRunRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClientInterceptor, ProtobufRequestContext
from rich.console import Console

from server.deployment.certificates import make_authority, make_client_pair, make_server_pair, pem, private_pem
from server.deployment.superlink import OPEN_PATH, TOKEN_HEADER, TOKEN_VARIABLE, listening
from server.engines import check_outcome, write_app
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import load_config, parse_config, read_config
from spatl.data import DATASETS, OWN
from spatl.deployment.processes import environment, free_port, past_proxies, stop
from spatl.deployment.sites import (
    CA_CERTIFICATE,
    CA_KEY,
    CLIENT_KEY,
    CONFIG,
    DEFAULT_RUN,
    PUBLIC_KEYS,
    RUN,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    Address,
    ClientSite,
    ServerSite,
    check_private,
    make_private,
    read_server_site,
    run_name,
    write_private,
    write_run,
    write_site,
)
from spatl.errors import ConfigError, SpatlError
from spatl.json_files import read_json
from spatl.report.result import read_run
from spatl.rounds.blueprint import cached_blueprint
from spatl.runner import resume, run
from spatl.runs.directory import REGISTRATION, alone_in_run, config_of, has_rounds, serving_run
from spatl.sealed_files import replace_file
from spatl.terminal.progress import progress_of
from spatl.terminal.result import print_result

logger = logging.getLogger(__name__)

_START_SECONDS = 90.0
_FINISH_SECONDS = 10.0
_POLL_SECONDS = 0.5


def init(options: Namespace, console: Console) -> None:
    """Make all keys of a deployment, and a directory for each machine.

    Raises:
        SpatlError: The config does not work out, or the directory is there already.
    """
    directory = Path(options.directory).absolute()
    if directory.exists():
        raise ConfigError(f"{directory} is already there; choose another directory, for keys are never overwritten")
    address = Address.parse(options.address)
    values = read_config(options.config, options.overrides)
    section = values.get("partition") or {}
    given = not isinstance(section, dict) or section.get("name") is not None
    if not given:
        values["partition"] = {**section, "name": OWN}
    config = parse_config(values).located(Path.cwd())
    if config.has_own_data and "path" not in DATASETS[config.data.name].options:
        raise ConfigError(
            f"partition.name: own{'' if given else ' (the default here)'} is for data that lie on the devices, but "
            f"data set {config.data.name!r} is read from no path: name a partitioner, e.g. --set partition.name=iid"
        )
    if config.report.compare_alone:
        logger.warning("report.compare_alone is not kept: a deployment's clients train together only")
        config = config.model_copy(update={"report": config.report.model_copy(update={"compare_alone": False})})
    if not config.has_own_data:  # a mistake in the config shows here, before anything is written
        cached_blueprint(config.to_json()).check_clients()
    num_clients = config.partition.num_clients
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        ca, server = make_private(directory) / "ca", directory / "server"
        authority = make_authority()
        certificate = pem(authority.certificate)
        write_private(make_private(ca) / CA_KEY, private_pem(authority.key))
        write_private(ca / CA_CERTIFICATE, certificate)
        pair = make_server_pair(authority, [address.host, "127.0.0.1", "localhost", *options.names])
        write_private(make_private(server) / CA_CERTIFICATE, certificate)
        write_private(server / SERVER_CERTIFICATE, pair.public)
        write_private(server / SERVER_KEY, pair.private)
        write_private(server / CONFIG, config.to_yaml().encode())
        write_site(server, ServerSite(str(address), num_clients))
        make_private(server / PUBLIC_KEYS)
        for client in range(num_clients):
            own, pair = make_private(directory / f"client-{client}"), make_client_pair()
            write_private(own / CA_CERTIFICATE, certificate)
            write_private(own / CLIENT_KEY, pair.private)
            write_site(own, ClientSite(str(address), client, num_clients))
            write_private(server / PUBLIC_KEYS / f"client-{client}.pub", pair.public)
    except OSError as error:
        raise SpatlError(f"cannot write {error.filename or directory}: {error.strerror}") from error
    owned = f"partition.name: own{'' if given else ', for the config names none'}: what lies on a device is all its own"
    shares = f"partition.name: {config.partition.name}: each device gets its share of one data set, which all must hold"
    for line in (
        owned if config.has_own_data else f"{shares} alike",
        f"{directory}: keys for a server and {num_clients} clients. Keep ca/ offline; copy the others to their "
        "machines, each to its own alone, and start there:",
        f"  spatl deploy server {server}",
        *(f"  spatl deploy client {directory / f'client-{client}'}" for client in range(num_clients)),
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def serve(options: Namespace, console: Console) -> None:
    """Run the federation of a server's directory, and stop all that it takes afterwards.

    Raises:
        SpatlError: The directory is none of a server, the clients do not come, or the run cannot start or go on.
    """
    directory = Path(options.directory).absolute()
    site = read_server_site(directory)
    config = load_config(directory / CONFIG)
    if config.partition.num_clients != site.num_clients:
        raise ConfigError(
            f"{directory / CONFIG} has {config.partition.num_clients} clients, the deployment {site.num_clients}"
        )
    address = Address.parse(site.address)
    bind = Address(options.bind, address.port)
    if options.insecure:
        logger.warning("--insecure: no TLS; whoever reaches %s can take part, and read and change what passes", bind)
    if bind.is_loopback and not address.is_loopback:
        logger.warning("listening on %s only, where no other machine can call: set --bind 0.0.0.0", bind.host)
    out = Path(options.out).absolute() if options.out else directory / DEFAULT_RUN
    os.environ.update(past_proxies())  # of this process, which calls the SuperLink on loopback

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    def engine(config: ExperimentConfig, run_directory: Path, *, resume: bool) -> None:
        with alone_in_run(
            run_directory
        ):  # what a killed one left may still be at work; the ServerApp locks it for good
            for name in ("error.json", REGISTRATION):
                (run_directory / name).unlink(missing_ok=True)
            write_run(run_directory, run_name(run_directory) or _new_name(), directory)
            replace_file(run_directory / CONFIG, config.to_yaml().encode())  # for whoever looks while clients come
        keys = {} if options.insecure else _public_keys(directory, site.num_clients)
        with _superlink(directory, run_directory, bind, insecure=options.insecure) as link:
            nodes = link.register(keys)
            link.open()
            say(f"listening on {bind}, waiting for {site.num_clients} clients")
            enough = max(1, config.server.min_replies)
            link.await_clients(site.num_clients, say, seconds=options.wait, enough=enough)
            link.run(config, run_directory, say, resume=resume, nodes=nodes)

    command = shlex.join(["spatl", "deploy", "server", options.directory])
    if options.resume and (out / "summary.json").exists() and (out / "report.html").exists():
        print_result(console, read_run(out))  # a service that is started again has nothing left to do
        return
    with serving_run(out), progress_of(console, config) as progress:
        if has_rounds(out):
            if not options.resume:
                raise ConfigError(
                    f"{out} holds a run already: --resume goes on with it, --out starts another elsewhere"
                )
            result = resume(out, on_round=progress.on_round, command=command, engine=engine)
        else:
            _forget_other(config, out)
            result = run(config, out, on_round=progress.on_round, command=command, engine=engine)
    print_result(console, result)


def _forget_other(config: ExperimentConfig, out: Path) -> None:
    """Give a run that never got to the end of a round another name where its config has changed.

    Under the same name, the devices go on from what they have of its first round.
    """
    try:
        same = _without_agreement(config_of(out)) == _without_agreement(config)
    except SpatlError:  # it is not there, or of another version
        same = False
    if not same:
        (out / RUN).unlink(missing_ok=True)


def _without_agreement(config: ExperimentConfig) -> ExperimentConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"agreed": None})})


class _Link:
    """A SuperLink that this process has started, by its private socket.

    Args:
        process: The SuperLink.
        client: Calls its Control API.
        base_url: The private socket.
        token: What opens it.
        log_path: Where Flower's processes say what they do.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], client: ControlHttpClient, http: httpx.Client, log_path: Path
    ) -> None:
        self._process = process
        self._client = client
        self._http = http
        self._log_path = log_path

    def await_start(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(httpx.HTTPError):
                self._client.ListNodes(ListNodesRequest())
                return
            self._check_alive()
            if time.monotonic() > deadline:
                raise SpatlError(f"the SuperLink did not start; see {self._log_path}")
            time.sleep(_POLL_SECONDS)

    def register(self, keys: Mapping[int, bytes]) -> dict[int, int]:
        """Let in the clients that hold these keys (PEM); return the node id of each."""
        return {
            client: self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=f"client-{client}")).node_id
            for client, key in keys.items()
        }

    def open(self) -> None:
        """Let SuperNodes in, now that it knows whom."""
        self._http.post(OPEN_PATH).raise_for_status()

    def await_clients(self, number: int, say: Callable[[str], None], *, seconds: float, enough: int) -> None:
        """Wait until so many clients are connected, or for a while for enough of them, and say who is missing.

        Raises:
            SpatlError: Too few come in time.
        """
        deadline, said = time.monotonic() + seconds, -1
        while True:
            nodes = self._client.ListNodes(ListNodesRequest()).nodes_info
            online = [node for node in nodes if node.status == "online"]
            if len(online) != said:
                say(f"{len(online)} of {number} clients are connected")
                said = len(online)
            if len(online) >= number:
                return
            self._check_alive()
            if time.monotonic() > deadline:
                missing = sorted(node.name for node in nodes if node.name and node.status != "online")
                told = (
                    f"after {seconds:g} s {len(online)} of {number} clients are connected"
                    f"{', without ' + ', '.join(missing) if missing else ''} (--wait)"
                )
                if len(online) < enough:
                    raise SpatlError(told)
                say(f"{told}; going on with those")
                return
            time.sleep(_POLL_SECONDS)

    def run(
        self, config: ExperimentConfig, directory: Path, say: Callable[[str], None], *, resume: bool,
        nodes: Mapping[int, int],
    ) -> None:  # fmt: skip
        """Submit a run and wait for its end, and say who takes no part.

        Raises:
            SpatlError: It ended without a result.
        """
        with tempfile.TemporaryDirectory(prefix="spatl-") as app:
            write_app(Path(app), config, directory, resume=resume, name=run_name(directory), nodes=nodes)
            content = build_fab_from_disk(Path(app))
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        run_id = self._client.StartRun(StartRunRequest(fab=fab_to_proto(fab))).run_id
        over = [directory / name for name in ("summary.json", "error.json")]
        said = False
        while not any(path.exists() for path in over) and not self._is_finished(run_id):
            self._check_alive()
            if not said and (directory / REGISTRATION).exists():
                for client, reason in read_json(directory / REGISTRATION)["absent"].items():
                    say(f"client {client} takes no part: {reason}")
                said = True
            time.sleep(_POLL_SECONDS)
        deadline = time.monotonic() + _FINISH_SECONDS
        while not self._is_finished(run_id) and time.monotonic() < deadline:  # the clients' last replies are in
            time.sleep(_POLL_SECONDS)
        check_outcome(directory, otherwise=f"the run ended without a result; see {self._log_path}")

    def _is_finished(self, run_id: int) -> bool:
        runs = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
        return bool(runs[run_id].status.status == "finished")

    def _check_alive(self) -> None:
        if self._process.poll() is not None:
            raise SpatlError(f"the SuperLink has ended; see {self._log_path}")


class _WithToken:
    """Adds the token of the private socket to Flower's calls."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Send a request with the token."""
        context.request.headers[TOKEN_HEADER] = self._token
        return call_next(context)


@contextlib.contextmanager
def _superlink(directory: Path, run_directory: Path, bind: Address, *, insecure: bool) -> Iterator[_Link]:
    """Start a SuperLink that has not been opened to SuperNodes, and stop it and all it started afterwards."""
    try:
        listening(bind.host, bind.port).close()
    except OSError as error:
        raise SpatlError(f"cannot listen on {bind}: {error.strerror} (--bind)") from error
    if not insecure:
        check_private(directory / SERVER_KEY)
    certificates = [
        "--ssl-ca-certfile", str(directory / CA_CERTIFICATE),
        "--ssl-certfile", str(directory / SERVER_CERTIFICATE),
        "--ssl-keyfile", str(directory / SERVER_KEY),
        "--enable-supernode-auth",
    ]  # fmt: skip
    port, token, log_path = free_port(), secrets.token_hex(32), run_directory / "flower.log"
    command = [
        sys.executable, "-m", "server.deployment.superlink", "--fleet-host", bind.host, "--fleet-port", str(bind.port),
        "--host", "127.0.0.1", "--port", str(port), "--isolation", "subprocess",
        *(["--insecure"] if insecure else certificates),
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spatl-")))
        log = stack.enter_context(log_path.open("ab"))
        process = subprocess.Popen(
            command, env={**environment(home), TOKEN_VARIABLE: token}, cwd=home, stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        stack.callback(stop, process)
        url = f"{'http' if insecure else 'https'}://127.0.0.1:{port}"
        verify = False if insecure else ssl.create_default_context(cafile=str(directory / CA_CERTIFICATE))
        interceptors: list[ProtobufClientInterceptor] = [
            RuntimeVersionHttpInterceptor(component_name="spatl"),
            _WithToken(token),
        ]
        client = stack.enter_context(ControlHttpClient(url, interceptors=interceptors, verify=verify))
        http = stack.enter_context(httpx.Client(base_url=url, verify=verify, headers={TOKEN_HEADER: token}))
        link = _Link(process, client, http, log_path)
        link.await_start()
        yield link


def _public_keys(directory: Path, num_clients: int) -> dict[int, bytes]:
    """The keys of the clients (PEM).

    Raises:
        SpatlError: One is missing, or is no key that Flower takes.
    """
    keys = {}
    for client in range(num_clients):
        path = directory / PUBLIC_KEYS / f"client-{client}.pub"
        try:
            key = load_ssh_public_key(path.read_bytes())
        except OSError as error:
            raise SpatlError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise SpatlError(f"{path} holds no public key of OpenSSH's on an elliptic curve (ssh-keygen -t ecdsa)")
        keys[client] = public_key_to_bytes(key)
    return keys


def _new_name() -> str:
    """What the devices call a run, the same when it goes on."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
