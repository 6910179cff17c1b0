"""The engines: what drives the same ServerApp and ClientApp in this process, or through Flower's simulation runtime."""

import contextlib
import importlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import torch
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from server.grids import SERVER_NODE_ID, InProcessGrid
from spatl.config import ExperimentConfig
from spatl.errors import DivergedError, SpatlError
from spatl.history import alone_in_run, read_json

logger = logging.getLogger(__name__)

SERVER_APP = "server.app:app"
CLIENT_APP = "clients.app:app"
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0


def run_inline(config: ExperimentConfig, directory: Path, *, resume: bool = False) -> None:
    """Run a federation in this process, or go on with one: clients one after another, no Ray, no SuperLink.

    Raises:
        SpatlError: The run cannot start or cannot go on.
    """
    server_app, client_app = _load(SERVER_APP), _load(CLIENT_APP)
    assert isinstance(server_app, ServerApp)
    assert isinstance(client_app, ClientApp)
    run_config = {"config": config.to_json(), "out": str(directory)}
    with _quiet_flower():
        grid = InProcessGrid(client_app, num_clients=config.partition.num_clients, run_config=run_config)
        context = Context(
            run_id=1, node_id=SERVER_NODE_ID, node_config={}, state=RecordDict(),
            run_config={**run_config, "resume": resume},
        )  # fmt: skip
        server_app(grid, context)


def run_ray(config: ExperimentConfig, directory: Path, *, resume: bool = False) -> None:
    """Run a federation, or go on with one, by `flwr run` on Flower's simulation runtime.

    It gets a SuperLink of its own on loopback.

    What Flower and Ray print goes to `flower.log` in the run's directory.

    Raises:
        SpatlError: The run cannot start or cannot go on.
    """
    if torch.cuda.is_available() and config.resources.gpus_per_client == 0 and config.training.device != "cpu":
        logger.warning("Ray hides the GPUs from clients that ask for none: set resources.gpus_per_client, e.g. to 0.25")
    with alone_in_run(directory):  # what a killed one left may still be at work; the ServerApp locks it for good
        (directory / "error.json").unlink(missing_ok=True)
    log_path = directory / "flower.log"
    with tempfile.TemporaryDirectory(prefix="spatl-") as scratch, log_path.open("ab") as log:
        home, app = Path(scratch) / "flwr", Path(scratch) / "app"
        home.mkdir()
        app.mkdir()
        _write_app(app, config, directory, resume=resume)
        environment = _environment(home)
        with _superlink(home, environment, log_path) as address:
            (home / "config.toml").write_text(
                f'[superlink]\ndefault = "spatl"\n\n[superlink.spatl]\naddress = "{address}"\ninsecure = true\n',
                encoding="utf-8",
            )
            resources = config.resources
            federation = (
                f"num-supernodes={config.partition.num_clients} "
                f"client-resources-num-cpus={resources.cpus_per_client} "
                f"client-resources-num-gpus={resources.gpus_per_client}"
            )
            subprocess.run(
                [_script("flwr"), "run", str(app), "spatl", "--federation-config", federation, "--stream"],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
    error = directory / "error.json"
    if error.exists():
        content = read_json(error)
        raise (DivergedError if content["error"] == DivergedError.__name__ else SpatlError)(content["message"])
    if not (directory / "summary.json").exists():
        raise SpatlError(f"Flower's simulation ended without a result; see {log_path}")


def _load(reference: str) -> object:
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _write_app(app: Path, config: ExperimentConfig, directory: Path, *, resume: bool = False) -> None:
    """Write an app bundle that only refers to the installed packages; its run config carries everything."""
    values = {"config": config.to_json(), "out": str(directory)}
    # A JSON string is a TOML string once its characters are written out.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    lines += ["resume = true"] if resume else []
    content = "\n".join(
        [
            "[project]",
            'name = "spatl-run"',
            'version = "0.0.0"',
            'license = "Apache-2.0"',
            "[tool.flwr.app]",
            'publisher = "spatl"',
            "[tool.flwr.app.components]",
            f'serverapp = "{SERVER_APP}"',
            f'clientapp = "{CLIENT_APP}"',
            "[tool.flwr.app.config]",
            *lines,
            "",
        ]
    )
    (app / "pyproject.toml").write_text(content, encoding="utf-8")


def _environment(home: Path) -> dict[str, str]:
    """The environment of Flower's processes: this interpreter's programs and packages, and nothing phoned home."""
    roots = [str(Path(__file__).resolve().parents[1]), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(root for root in roots if root),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


@contextlib.contextmanager
def _superlink(home: Path, environment: dict[str, str], log_path: Path) -> Iterator[str]:
    """Start a SuperLink in simulation mode on loopback, and stop it and all it started afterwards."""
    port, control_port = _free_port(), _free_port()
    command = [
        _script("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess",
        "--host", "127.0.0.1", "--port", str(port), "--control-api-address", f"127.0.0.1:{control_port}",
    ]  # fmt: skip
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _healthy(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SpatlError(f"Flower's SuperLink did not start; see {log_path}")
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and all below it: the simulation and Ray run in process groups of their own."""
    below = _descendants(process.pid)
    for number in (process.pid, *below):
        _signal(number, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < deadline and (process.poll() is None or any(_signal(number, 0) for number in below)):
        time.sleep(0.1)
    for number in (process.pid, *below):
        _signal(number, signal.SIGKILL)
    process.wait()


def _descendants(root: int) -> list[int]:
    """The process ids below one, nearest first."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
    children: dict[int, list[int]] = {}
    for line in listing.splitlines():
        number, parent = (int(part) for part in line.split())
        children.setdefault(parent, []).append(number)
    found = [root]
    for number in found:
        found.extend(children.get(number, []))
    return found[1:]


def _signal(number: int, what: int) -> bool:
    """Send a signal; false if the process is gone."""
    try:
        os.kill(number, what)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _script(name: str) -> str:
    """The path of a program that was installed beside this interpreter."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        raise SpatlError(f"{name} is not installed; engine ray needs: pip install 'spatl[simulation]'")
    return found


@contextlib.contextmanager
def _quiet_flower() -> Iterator[None]:
    """Keep Flower's own progress lines off the terminal; warnings still show."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
