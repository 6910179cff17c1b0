"""SuperLink as a child process of `spatl deploy server`, and the calls of its Control API.

It is `server.deployment.superlink`, which listens for these calls on a private socket of loopback and asks for a token.
"""

import contextlib
import hashlib
import os
import secrets
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClientInterceptor, ProtobufRequestContext

from server.deployment.certificates import check_server_pair
from server.deployment.gate import OPEN_PATH, TOKEN_HEADER
from server.deployment.sockets import TOKEN_VARIABLE, listening
from server.deployment.watching import AppWatch, end_lost
from server.engines import check_outcome, write_app
from server.pulse import PULSE_VARIABLE
from spatl.config.experiment import ExperimentConfig
from spatl.deployment.processes import descendants, environment, free_port, is_alive, stop
from spatl.deployment.sites import (
    CA_CERTIFICATE,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    Address,
    check_private,
    make_private,
    run_name,
)
from spatl.deployment.superexec import make_program, make_secret
from spatl.errors import SpatlError
from spatl.json_files import read_json
from spatl.runs.files import ERROR, FLOWER_LOG, REGISTRATION, SUMMARY
from spatl.runs.waiting import Waiting, read_waiting, write_waiting

_START_SECONDS = 90.0
_FINISH_SECONDS = 10.0
ANSWER_VARIABLE = "SPATL_ANSWER_SECONDS"
"""Environment variable with how long a SuperLink may take to answer; 45 seconds where it is not set."""
_POLL_SECONDS = 0.5
_CONNECTIONS, _CONNECTIONS_OF_A_CLIENT = 64, 16  # Flower pushes and pulls eight objects at once


@contextlib.contextmanager
def started_superlink(
    directory: Path, run_directory: Path, bind: Address, *, insecure: bool, num_clients: int
) -> Iterator["StartedSuperLink"]:
    """Start a SuperLink that has not been opened to SuperNodes, and stop it and all it started afterwards.

    Args:
        directory: The server's, with its certificate and key.
        run_directory: Directory of the run, for Flower's log.
        bind: Public address to listen on.
        insecure: Whether to do without TLS and keys.
        num_clients: How many clients there are, which says how many connections may be open at once.

    Raises:
        SpatlError: The address cannot be listened on, the server's key is missing or open to others, or the SuperLink
            does not start.
    """
    _check_start(directory, bind, insecure=insecure)
    certificates = [
        "--ssl-ca-certfile", str(directory / CA_CERTIFICATE),
        "--ssl-certfile", str(directory / SERVER_CERTIFICATE),
        "--ssl-keyfile", str(directory / SERVER_KEY),
        "--enable-supernode-auth",
    ]  # fmt: skip
    port, token, log_path = free_port(), secrets.token_hex(32), run_directory / FLOWER_LOG
    command = [
        sys.executable, "-m", "server.deployment.superlink", "--fleet-host", bind.host, "--fleet-port", str(bind.port),
        "--most-connections", str(_CONNECTIONS + _CONNECTIONS_OF_A_CLIENT * num_clients),
        "--registration", str(run_directory / REGISTRATION),
        "--host", "127.0.0.1", "--port", str(port), "--isolation", "subprocess",
        *(["--insecure"] if insecure else certificates),
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spatl-")))
        log, pulse = stack.enter_context(log_path.open("ab")), home / "pulse"
        pulse.touch()
        process = subprocess.Popen(
            command, env=_settings(home) | {TOKEN_VARIABLE: token, PULSE_VARIABLE: str(pulse)}, cwd=home,
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        stack.callback(stop, process)
        url = f"{'http' if insecure else 'https'}://127.0.0.1:{port}"
        verify = False if insecure else ssl.create_default_context(cafile=str(directory / CA_CERTIFICATE))
        interceptors: list[ProtobufClientInterceptor] = [
            RuntimeVersionHttpInterceptor(component_name="spatl"),
            _WithToken(token),
        ]
        seconds = float(os.environ.get(ANSWER_VARIABLE, "45"))
        client = stack.enter_context(ControlHttpClient(url, interceptors=interceptors, verify=verify, timeout=seconds))
        http = stack.enter_context(httpx.Client(base_url=url, verify=verify, headers={TOKEN_HEADER: token}))
        link = StartedSuperLink(process, client, http, log_path, pulse=pulse)
        link.await_start()
        stack.callback(link.kill_below)
        yield link


def _check_start(directory: Path, bind: Address, *, insecure: bool) -> None:
    """Raise what would keep a SuperLink from starting."""
    try:
        listening(bind.host, bind.port).close()
    except OSError as error:
        raise SpatlError(f"cannot listen on {bind}: {error.strerror} (--bind)") from error
    if not insecure:
        check_private(directory / SERVER_KEY)
        check_server_pair(directory / CA_CERTIFICATE, directory / SERVER_CERTIFICATE, directory / SERVER_KEY)


def _settings(home: Path) -> dict[str, str]:
    """Return the environment of the server's processes, with our program in the place of Flower's SuperExec."""
    settings, programs = environment(home), home / "bin"
    make_program(make_private(programs))
    return settings | make_secret(home) | {"PATH": os.pathsep.join([str(programs), settings["PATH"]])}


class LinkLost(SpatlError):
    """Loss of a SuperLink or of the ServerApp that it runs: killed, or hanging. Both may be started again."""


class StartedSuperLink:
    """SuperLink that this process has started, called on its private socket.

    Args:
        process: Its process.
        client: Calls of its Control API.
        http: Other calls; both carry the token.
        log_path: Log of Flower's processes.
        pulse: The file that the ServerApp touches as it goes; None where nobody looks.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], client: ControlHttpClient, http: httpx.Client, log_path: Path, *,
        pulse: Path | None = None,
    ) -> None:  # fmt: skip
        self._process = process
        self._client = client
        self._http = http
        self._log_path, self._pulse = log_path, pulse
        self._below = set[int]()

    def await_start(self) -> None:
        """Wait until it answers.

        Raises:
            SpatlError: It has ended, or does not answer in time.
        """
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
            client: self._answer_of(
                self._client.RegisterNode, RegisterNodeRequest(public_key=key, name=f"client-{client}")
            ).node_id
            for client, key in keys.items()
        }

    def unregister(self, nodes: Iterable[int]) -> None:
        """Let in no more whose node ids these are: their sessions end, and their keys are refused."""
        for node in nodes:
            self._answer_of(self._client.UnregisterNode, UnregisterNodeRequest(node_id=node))

    def open(self, keys: Iterable[bytes] | None) -> None:
        """Let SuperNodes in, whose keys (PEM) are registered by now; None where anybody is let in."""
        content = b"\n".join(map(b64encode, keys or ()))
        self._answer_of(lambda body: self._http.post(OPEN_PATH, content=body).raise_for_status(), content)

    def await_clients(
        self, number: int, say: Callable[[str], None], *, run: Path, seconds: float, enough: int, give_up: float | None
    ) -> None:
        """Wait until so many clients are connected, or for a while for more than enough of them; say who is missing.

        Args:
            number: How many there are.
            say: Shows a line.
            run: Directory of the run, for whoever looks at it meanwhile.
            seconds: How long all are waited for where enough are there.
            enough: How many must come.
            give_up: After how many seconds too few end the wait; None for never.

        Raises:
            SpatlError: Too few come in time.
        """
        began, started, said, told = time.time(), time.monotonic(), -1, False
        while True:
            nodes = self._answer_of(self._client.ListNodes, ListNodesRequest()).nodes_info
            online = sum(node.status == "online" for node in nodes)
            missing = sorted(node.name for node in nodes if node.name and node.status != "online")
            if online != said:
                say(f"{online} of {number} clients are connected")
                said = online
                numbers = tuple(int(name.removeprefix("client-")) for name in missing)
                write_waiting(run, Waiting(0, began, enough, online, numbers) if online < enough else None)
            if online >= number:
                return
            self._check_alive()
            waited = time.monotonic() - started
            without = f"{online} of {number} clients are connected{', without ' * bool(missing)}{', '.join(missing)}"
            if online < enough and give_up is not None and waited > give_up:
                raise SpatlError(f"after {give_up:g} s {without} (server.give_up_seconds)")
            if waited > seconds and online >= enough:
                say(f"after {seconds:g} s {without} (--wait); going on with those")
                return
            if waited > seconds and not told:
                say(f"after {seconds:g} s {without}; waiting for {enough} (server.min_replies)")
                told = True
            time.sleep(_POLL_SECONDS)

    def run(
        self, config: ExperimentConfig, directory: Path, say: Callable[[str], None], *, resume: bool,
        nodes: Mapping[int, int], longest_step: float | None = None, follow: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Submit a run and wait for its end, say who takes no part, and have `follow` called now and then.

        Args:
            config: The run.
            directory: Its directory.
            say: Shows a line.
            resume: Whether it goes on.
            nodes: The node id of each client.
            longest_step: As of `AppWatch`.
            follow: Called now and then.

        Raises:
            SpatlError: It ended without a result.
        """
        with tempfile.TemporaryDirectory(prefix="spatl-") as app:
            write_app(Path(app), config, directory, resume=resume, name=run_name(directory), nodes=nodes)
            content = build_fab_from_disk(Path(app))
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        run_id = self._answer_of(self._client.StartRun, StartRunRequest(fab=fab_to_proto(fab))).run_id
        over = [directory / name for name in (SUMMARY, ERROR)]
        said, awaited, watch = False, "", AppWatch(pulse=self._pulse, longest_step=longest_step)
        while not any(path.exists() for path in over) and not self._is_finished(run_id):
            self._check_alive()
            if not said and (directory / REGISTRATION).exists():
                for client, reason in read_json(directory / REGISTRATION)["absent"].items():
                    say(f"client {client} takes no part: {reason}")
                said = True
            if (waits := str(read_waiting(directory) or "")) != awaited:
                say(waits or "enough clients are connected again")
                awaited = waits
            follow()
            self.look_below()
            how = watch.look(self._below)
            if how is not None and not any(path.exists() for path in over):
                end_lost(self._below)
                raise LinkLost(f"the ServerApp {how}; see {self._log_path}")
            time.sleep(_POLL_SECONDS)
        deadline = time.monotonic() + _FINISH_SECONDS
        while not self._is_finished(run_id) and time.monotonic() < deadline:  # the clients' last replies are in
            time.sleep(_POLL_SECONDS)
        if not (directory / SUMMARY).exists():
            # What the ServerApp says of a SuperLink that has gone is no outcome.
            self._answer_of(self._client.ListNodes, ListNodesRequest())
        ended = f"the ServerApp has ended without a result; see {self._log_path}"
        check_outcome(directory, otherwise=LinkLost(ended))

    def look_below(self) -> None:
        """Note what runs below it; of what has ended, the number may be another process's by the time of a kill."""
        self._below = set(filter(is_alive, {*self._below, *descendants(self._process.pid)}))

    def kill_below(self) -> None:
        """Kill what a SuperLink has left that ended by itself; the end of one that runs is theirs, too."""
        for number in self._below if self._process.poll() is not None else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def _is_finished(self, run_id: int) -> bool:
        runs = self._answer_of(self._client.ListRuns, ListRunsRequest(run_id=run_id)).run_dict
        return bool(runs[run_id].status.status == "finished")

    def _answer_of(self, call: Callable[[Any], Any], request: Any) -> Any:
        """Return what the SuperLink answers.

        Raises:
            LinkLost: It has ended, or does not answer.
        """
        try:
            return call(request)
        except httpx.HTTPError as error:
            self._check_alive()
            raise LinkLost(
                f"the SuperLink does not answer any more ({type(error).__name__}: {error}); see {self._log_path}"
            ) from error

    def _check_alive(self) -> None:
        status = self._process.poll()
        if status is not None:
            how = f"was ended by signal {-status}" if status < 0 else f"has ended with status {status}"
            raise LinkLost(f"the SuperLink {how}; see {self._log_path}")


class _WithToken:
    """Adds the token of the private socket to Flower's calls."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Send a request with the token."""
        context.request.headers[TOKEN_HEADER] = self._token
        return call_next(context)
