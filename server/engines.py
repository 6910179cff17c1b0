"""Engines that run the same ServerApp and ClientApp in this process, or through Flower's simulation runtime."""

import contextlib
import importlib
import json
import logging
import os
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from server.grids import SERVER_NODE_ID, InProcessGrid
from server.groups import GroupGrid
from server.workers import WorkerGrid
from spatl.config.engines import CLIENT_APP, SERVER_APP
from spatl.config.experiment import ExperimentConfig
from spatl.deployment.processes import (
    RAY_VARIABLE,
    REASON_VARIABLE,
    RUN_VARIABLE,
    environment,
    free_port,
    is_alive,
    script,
    stop,
)
from spatl.disk.writing import write_synced
from spatl.errors import DivergedError, SpatlError, SystemFault, going_on, naming, system_fault
from spatl.json_files import read_json
from spatl.rounds.blueprint import cached_blueprint
from spatl.runs.directory import alone_in_run
from spatl.runs.files import ERROR, FLOWER_LOG, SUMMARY
from spatl.training.device import choose_device

logger = logging.getLogger(__name__)

_START_SECONDS = 60.0
_END_SECONDS = 5.0  # in which Flower says of a simulation whose process is over how it ended
_POLL_SECONDS = 0.2
_PROCESS, _REASON = "process", "reason"
_NEEDS = "spatl[simulation]"
_PROBE = ".probe"
_PROBE_BYTES = 4096
_LONGEST_PLACE = 24  # Ray's sockets lie up to 80 characters deeper, and may have 107


def run_inline(config: ExperimentConfig, directory: Path, *, resume: bool = False) -> None:
    """Run a federation in this process, or go on with one: no Ray, no SuperLink.

    Clients are trained one after another, or by processes that this one forks (`resources.workers`).

    Raises:
        SpatlError: The run cannot start or cannot go on.
    """
    server_app, client_app = _load(SERVER_APP), _load(CLIENT_APP)
    assert isinstance(server_app, ServerApp)
    assert isinstance(client_app, ClientApp)
    run_config = {"config": config.to_json(), "out": str(directory)}
    with _quiet_flower(), _inline_grid(client_app, config, run_config) as grid:
        context = Context(
            run_id=1, node_id=SERVER_NODE_ID, node_config={}, state=RecordDict(),
            run_config={**run_config, "resume": resume},
        )  # fmt: skip
        server_app(grid, context)


@contextlib.contextmanager
def _inline_grid(
    client_app: ClientApp, config: ExperimentConfig, run_config: Mapping[str, str]
) -> Iterator[InProcessGrid]:
    """Yield what carries messages to clients on this machine: in this process, or in forked ones."""
    num_workers, num_clients = config.resources.workers, config.partition.num_clients
    training = config.training
    settings: dict[str, Any] = {"num_clients": num_clients, "run_config": run_config}
    if not num_workers and training.group_size == 1:
        yield InProcessGrid(client_app, **settings)
        return
    if num_workers:
        config.resources.check_workers(device=str(choose_device(training.device)), threads=training.threads)
    # All that workers need lies in memory before they are forked.
    settings["sizes"] = [len(part) for part in cached_blueprint(run_config["config"]).partition]
    grid: WorkerGrid | GroupGrid
    if num_workers:
        grid = WorkerGrid(client_app, num_workers=num_workers, **settings)
    else:
        grid = GroupGrid(client_app, group_size=training.group_size, threads=training.threads, **settings)
    try:
        yield grid
    finally:
        grid.close()


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
        (directory / ERROR).unlink(missing_ok=True)
    log_path = directory / FLOWER_LOG
    with _scratch_directory() as scratch, log_path.open("ab") as log:
        home, app = scratch / "flwr", scratch / "app"
        home.mkdir()
        app.mkdir()
        write_app(app, config, directory, resume=resume)
        settings = _environment_of_simulation(scratch, home)
        if config.resources.ray_address is not None:
            settings |= {RAY_VARIABLE: config.resources.ray_address, RUN_VARIABLE: str(directory.absolute())}
        program = [sys.executable, "-m", "server.simulation.superlink", str(scratch)]
        with running_superlink(program, home, settings, log_path) as address:
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
            command = [
                script("flwr", needs=_NEEDS), "run", str(app), "spatl", "--federation-config", federation, "--stream",
            ]  # fmt: skip
            with subprocess.Popen(
                command, env=settings, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            ) as streaming:
                try:
                    _await_simulation(streaming, scratch)
                finally:
                    streaming.terminate()
        reason = scratch / _REASON
        told = reason.read_text(encoding="utf-8") if reason.exists() else "Flower's simulation ended without a result"
    ended = f"{told}; go on with the run in {directory} (--resume), or see {log_path}"
    check_outcome(directory, otherwise=SpatlError(ended))


def _await_simulation(streaming: "subprocess.Popen[bytes]", scratch: Path) -> None:
    """Wait for the end of a simulation, or of its process, which its SuperLink would notice a minute later."""
    gone_since = None
    while streaming.poll() is None:
        gone = not _is_there(scratch / _PROCESS)
        gone_since = (gone_since or time.monotonic()) if gone else None
        if gone_since is not None and time.monotonic() - gone_since > _END_SECONDS:
            return
        time.sleep(_POLL_SECONDS)


def _is_there(mark: Path) -> bool:
    """Return whether the process whose id a file holds is there, or has not begun."""
    try:
        return is_alive(int(mark.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return True


def check_outcome(directory: Path, *, otherwise: SpatlError) -> None:
    """Raise what ended the ServerApp of a run elsewhere, or `otherwise` where it left neither error nor summary.

    Raises:
        SpatlError: The run has no summary.
        SystemFault: Its directory cannot be written to, so that there is no error either.
    """
    error = directory / ERROR
    if error.exists():
        content = read_json(error)
        ending = (DivergedError if content["error"] == DivergedError.__name__ else SpatlError)(content["message"])
        if "traceback" in content:
            ending.add_note(content["traceback"])
        raise ending
    if not (directory / SUMMARY).exists():
        check_writable(directory)
        raise otherwise


def check_writable(directory: Path) -> None:
    """Write some bytes into a run's directory, and delete them again.

    Raises:
        SystemFault: The system refuses it; the message says what to do.
    """
    probe = directory / _PROBE
    try:
        with naming(probe):
            write_synced(probe, bytes(_PROBE_BYTES))
    except OSError as error:
        if (fault := system_fault(error)) is None:
            raise
        raise SystemFault(going_on(fault, directory)) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _load(reference: str) -> object:
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def write_app(
    app: Path, config: ExperimentConfig, directory: Path, *, resume: bool = False, name: str | None = None,
    nodes: Mapping[int, int] | None = None,
) -> None:  # fmt: skip
    """Write an app bundle that only refers to the installed packages; its run config carries everything.

    Args:
        app: An empty directory for it.
        config: The run.
        directory: Where the ServerApp puts the run's files.
        resume: Whether it goes on with what is there.
        name: What devices call the run, whose state of each lies apart.
        nodes: The node id that each client's key belongs to, where nodes are authenticated.
    """
    values = {"config": config.to_json(), "out": str(directory), **({"run": name} if name else {})}
    if nodes:
        values["nodes"] = json.dumps(dict(nodes))
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


@contextlib.contextmanager
def _scratch_directory() -> Iterator[Path]:
    """Make a directory for what Flower and Ray keep during a run, in a place whose name is short enough for Ray."""
    usual = tempfile.gettempdir()
    short = usual if len(usual) <= _LONGEST_PLACE or not Path("/tmp").is_dir() else "/tmp"
    with tempfile.TemporaryDirectory(prefix="spatl-", dir=short, ignore_cleanup_errors=True) as scratch:
        yield Path(scratch)


def _environment_of_simulation(scratch: Path, home: Path) -> dict[str, str]:
    """Return the environment of the processes of a simulation: with our program in the place of Flower's, a Ray alone.

    Ray looks for another one of this machine in the environment and in its directory of temporary files.
    """
    settings = environment(home)
    if (address := settings.pop("RAY_ADDRESS", "")) not in ("", "local"):
        logger.warning(
            "RAY_ADDRESS=%s is not used: a run starts a Ray of its own, or joins that of resources.ray_address", address
        )
    programs = scratch / "bin"
    programs.mkdir()
    program = programs / "flwr-simulation"
    command = shlex.join([sys.executable, "-m", "server.simulation.process"])
    mark = shlex.quote(str(scratch / _PROCESS))
    program.write_text(f'#!/bin/sh\necho $$ > {mark}\nexec {command} "$@"\n', encoding="utf-8")
    program.chmod(0o700)
    settings["PATH"] = os.pathsep.join([str(programs), settings["PATH"]])
    settings |= {"RAY_TMPDIR": str(scratch), REASON_VARIABLE: str(scratch / _REASON)}
    return settings


@contextlib.contextmanager
def running_superlink(program: Sequence[str], home: Path, settings: dict[str, str], log_path: Path) -> Iterator[str]:
    """Start a SuperLink in simulation mode on loopback, and stop it and all it started afterwards.

    Args:
        program: What takes the options of Flower's SuperLink.
        home: Where it starts.
        settings: Its environment.
        log_path: Where what it prints goes.
    """
    port, control_port = free_port(), free_port()
    command = [
        *program, "--insecure", "--simulation", "--isolation", "subprocess",
        "--host", "127.0.0.1", "--port", str(port), "--control-api-address", f"127.0.0.1:{control_port}",
    ]  # fmt: skip
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            command, env=settings, cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
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
        stop(process)


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def _quiet_flower() -> Iterator[None]:
    """Silence Flower's own progress lines on the terminal; warnings still show."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
