"""A real deployment on loopback: a SuperLink, SuperNodes that reach it through taps, and one run of our apps."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from server.engines import _healthy, write_app
from spatl.config import ExperimentConfig
from spatl.processes import environment, free_port, script, stop
from tests.taps import Tap

_START_SECONDS = 90.0
_SUBMIT_SECONDS = 120.0


def deploy(config: ExperimentConfig, directory: Path, *, timeout_seconds: float) -> list[Tap]:
    """Run a config on a SuperLink and one SuperNode per client, and stop them all again.

    Every process listens on 127.0.0.1 only. What they print goes to `flower.log` in `directory`.

    Args:
        config: The run.
        directory: Where the run's files go.
        timeout_seconds: How long the run itself may take.

    Returns:
        The tap of each client by partition id, with all that went over its connection to the SuperLink.

    Raises:
        RuntimeError: The deployment did not start, or the run ended without a summary.
    """
    scratch = directory / "deployment"
    scratch.mkdir(parents=True)
    log_path = directory / "flower.log"
    num_clients = config.partition.num_clients
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(_superlink(scratch / "superlink", log_path))
        port = int(address.rpartition(":")[2])
        taps = [stack.enter_context(contextlib.closing(Tap(port))) for _ in range(num_clients)]
        for client, tap in enumerate(taps):
            node_config = f"partition-id={client} num-partitions={num_clients}"
            stack.enter_context(_supernode(scratch / f"supernode-{client}", log_path, tap.port, node_config))
        _submit(scratch, log_path, address, config, directory)
        _await_end(directory, log_path, timeout_seconds)
    return taps


@contextlib.contextmanager
def started(*arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command of `spatl`, stopped with all it started."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "spatl.cli", *arguments], stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
            env={**environment(log.parent / f"{log.name}-home"), "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    try:
        yield process
    finally:
        stop(process)


@contextlib.contextmanager
def _superlink(home: Path, log_path: Path) -> Iterator[str]:
    """A SuperLink for deployments; its Fleet, Runtime and Control APIs share one port."""
    port = free_port()
    command = [
        script("flower-superlink"), "--insecure", "--isolation", "subprocess",
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    with _process(command, home, log_path) as process:
        deadline = time.monotonic() + _START_SECONDS
        while not _healthy(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the SuperLink did not start; see {log_path}")
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def _supernode(home: Path, log_path: Path, superlink_port: int, node_config: str) -> Iterator[None]:
    command = [
        script("flower-supernode"), "--insecure", "--isolation", "subprocess",
        "--superlink", f"127.0.0.1:{superlink_port}",
        "--host", "127.0.0.1", "--port", str(free_port()), "--node-config", node_config,
    ]  # fmt: skip
    with _process(command, home, log_path):
        yield


def _submit(scratch: Path, log_path: Path, address: str, config: ExperimentConfig, directory: Path) -> None:
    """Hand the run to the SuperLink; this returns before the run has started."""
    home, app = scratch / "submit", scratch / "app"
    home.mkdir()
    app.mkdir()
    write_app(app, config, directory)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n\n[superlink.test]\naddress = "{address}"\ninsecure = true\n',
        encoding="utf-8",
    )
    with log_path.open("ab") as log:
        subprocess.run(
            [script("flwr"), "run", str(app), "test"],
            env=_settings(home), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            timeout=_SUBMIT_SECONDS, check=True,
        )  # fmt: skip


def _await_end(directory: Path, log_path: Path, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not (directory / "summary.json").exists():
        error = directory / "error.json"
        if error.exists() or time.monotonic() > deadline:
            what = error.read_text(encoding="utf-8") if error.exists() else f"nothing after {timeout_seconds:g} s"
            raise RuntimeError(f"the run ended without a summary: {what}; see {log_path}")
        time.sleep(0.2)


@contextlib.contextmanager
def _process(command: list[str], home: Path, log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program of Flower's with a home of its own; stop it and all it started afterwards."""
    home.mkdir()
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            command, env=_settings(home), cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        stop(process)


def _settings(home: Path) -> Mapping[str, str]:
    return {**environment(home), "PYTHONUNBUFFERED": "1"}
