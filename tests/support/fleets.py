"""Fleets: real deployments whose parts are started again when they have ended, as systemd would."""

import contextlib
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from clients.store import DirectoryStore
from spatl.config.experiment import ExperimentConfig
from spatl.console.main import main as spatl
from spatl.deployment.processes import command_of, descendants, free_port
from spatl.deployment.sites import ClientSite, read_client_site, replace_site
from spatl.runs.checkpoint import load_checkpoint
from spatl.runs.records import read_lines
from tests.support.deployments import started
from tests.support.federations import blueprint_of
from tests.support.proxies import Proxy

RESTART_SECONDS = 3.0
POLL_SECONDS = 0.05
OF_CLIENT = {
    "supervisor": ("device/supervisor.py",),
    "SuperNode": ("flower-supernode", "clients.device.supernode"),
    "SuperExec of a client": ("deployment.superexec",),
    "preloaded": ("clients.device.preloaded",),
    "message process": ("handover.py", "clients.device.message_process"),
}
"""Parts of a client by what stands in their command lines."""
OF_SERVER = {
    "SuperLink": ("server.deployment.superlink",),
    "SuperExec of the server": ("deployment.superexec",),
    "ServerApp": ("flwr-serverapp",),
}
"""Parts of a server besides `spatl deploy server` itself."""


def make_federation(config: ExperimentConfig, directory: Path) -> int:
    """Write the directories of a deployment at a free port of loopback; return the port."""
    file = directory.parent / f"{directory.name}.yaml"
    file.write_text(config.to_yaml())
    port = free_port()
    assert spatl(["deploy", "init", str(directory), str(file), "--address", f"127.0.0.1:{port}"]) == 0
    return port


def put_between(directory: Path, proxies: Mapping[int, Proxy]) -> None:
    """Have clients call their proxies in place of the server."""
    for client, proxy in proxies.items():
        own = directory / f"client-{client}"
        site = read_client_site(own)
        replace_site(own, ClientSite(f"127.0.0.1:{proxy.port}", client, site.num_clients))


class Fleet:
    """The server and the clients of a deployment, each started again when it has ended.

    Args:
        directory: Of `spatl deploy init`.
        num_clients: How many there are.
        stack: What ends them.
        insecure: Whether they do without TLS and keys.
    """

    def __init__(
        self, directory: Path, num_clients: int, stack: contextlib.ExitStack, *, insecure: bool = False
    ) -> None:
        self.directory, self._stack = directory, stack
        self._more = ["--insecure"] if insecure else []
        self._starts = 0
        self.server = self.start("server")
        self.clients = [self.start(f"client-{client}") for client in range(num_clients)]
        self._ended = [0.0] * num_clients

    def start(self, who: str, variables: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start the server, or a client by its directory's name; what they say goes to a file beside it.

        Args:
            who: The name of its directory.
            variables: More environment.
        """
        role = who.partition("-")[0]
        more = [*self._more, *(["--resume"] if role == "server" else [])]
        self._starts += 1
        log = self.directory / f"{who}.{self._starts}.log"
        command = ("deploy", role, str(self.directory / who), *more)
        return self._stack.enter_context(started(*command, log=log, variables=variables))

    def restart_server(self, variables: Mapping[str, str] | None = None) -> None:
        """Start the server on what the last one left."""
        self.server = self.start("server", variables)

    def restart_client(self, client: int, variables: Mapping[str, str] | None = None) -> None:
        """Start a client on what the last one left."""
        self.clients[client] = self.start(f"client-{client}", variables)
        self._ended[client] = 0.0

    def tend(self) -> None:
        """Start again the clients that have ended a while ago."""
        for client, process in enumerate(self.clients):
            if process.poll() is None:
                self._ended[client] = 0.0
            elif not self._ended[client]:
                self._ended[client] = time.monotonic()
            elif time.monotonic() - self._ended[client] > RESTART_SECONDS:
                self.restart_client(client)

    def parts(self, part: str, client: int | None = None) -> list[int]:
        """The processes that are a part of a client (`OF_CLIENT`), or of the server (`OF_SERVER`)."""
        process = self.server if client is None else self.clients[client]
        names = (OF_SERVER if client is None else OF_CLIENT)[part]
        running = [process.pid, *descendants(process.pid)] if process.poll() is None else []
        return [pid for pid in running if any(name in command_of(pid) for name in names)]

    def working(self) -> list[int]:
        """The processes that work on a message: what Flower started for it, and the fork that does it."""
        found: set[int] = set()
        for client in range(len(self.clients)):
            found |= {fork for pid in self.parts("preloaded", client) for fork in descendants(pid)}
            found |= set(self.parts("message process", client))
        return sorted(found)

    def supernodes(self) -> list[int]:
        """The SuperNodes, and what keeps them running, with which they end."""
        running = [process.pid for process in self.clients if process.poll() is None]
        return running + [pid for client in range(len(self.clients)) for pid in self.parts("SuperNode", client)]

    def wait(self, over: Callable[[], Any], seconds: float) -> bool:
        """Tend the clients until `over`, the server has ended, or the time is up; return whether `over`."""
        deadline = time.monotonic() + seconds
        while not (done := bool(over())) and time.monotonic() < deadline and self.server.poll() is None:
            self.tend()
            time.sleep(POLL_SECONDS)
        return done

    def told(self) -> str:
        """The last words of all parts."""
        logs = sorted(self.directory.glob("*.log"), key=lambda log: log.stat().st_mtime)[-2 * len(self.clients) :]
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-2000:]}" for log in logs)


def history_of(run: Path) -> list[dict[str, Any]]:
    """The rounds that are over; a last line that is being written is left out."""
    path = run / "history.jsonl"
    return read_lines(path) if path.exists() else []


def check_run(config: ExperimentConfig, directory: Path) -> float:
    """Check what must hold after any fault; return the largest entry of c, which should not be zero.

    Args:
        config: The run's.
        directory: The federation's, whose parts have been stopped.

    Raises:
        AssertionError: A round is missing or twice there, more replies than clients were counted in one, or c is not
            the weighted sum of what the clients hold.
    """
    run, num_clients = directory / "server" / "run", config.partition.num_clients
    history, last = history_of(run), load_checkpoint(run)
    assert last is not None
    done = last.server_round
    assert [row["round"] for row in history if row["round"] <= done] == list(range(1, done + 1))
    assert all(row["participants"] <= num_clients for row in history)
    uploads = Counter((row["round"], row["client"], row["phase"]) for row in read_lines(run / "ledger.jsonl")
                      if row["direction"] == "uplink")  # fmt: skip
    for row in history:
        replies = sum(number for (of, _, phase), number in uploads.items() if (of, phase) == (row["round"], "train"))
        assert row["participants"] + row["rejected"] <= replies
    assert last.state.control is not None
    examples = {row["client"]: row["num_examples"] for row in read_lines(run / "clients.jsonl")}
    total, layout = sum(examples.values()), blueprint_of(config).layout
    expected = torch.zeros(layout.num_parameter_entries, dtype=torch.float64)
    for client, number in examples.items():
        (own,) = (directory / f"client-{client}" / "state").iterdir()
        state = DirectoryStore(own).load(before=done + 1)
        assert state is not None
        settled = state.settle(
            acknowledged_round=last.state.folded.get(client, 0), server_round=done,
            half_life=config.control.half_life,
        )  # fmt: skip
        expected += number / total * settled.control.double()
    torch.testing.assert_close(last.state.control.double(), expected, rtol=1e-4, atol=1e-6)
    return float(expected.abs().max())
