"""Real deployments on loopback, by the product's own commands."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from spatl.artifacts.description import read_description
from spatl.artifacts.model_files import read_model
from spatl.config.experiment import ExperimentConfig
from spatl.console.main import main
from spatl.data import Examples
from spatl.deployment.processes import environment, free_port, stop
from spatl.deployment.sites import Address, ClientSite, write_site
from spatl.json_files import read_json
from spatl.models.weights import read_weights
from spatl.training.evaluate import evaluate
from tests.support.taps import Tap


def deploy(config: ExperimentConfig, directory: Path, *, timeout_seconds: float) -> tuple[Path, list[Tap]]:
    """Run a config in a deployment without TLS, so that what passes between the machines can be read.

    Args:
        config: The run.
        directory: A new directory for the deployment.
        timeout_seconds: How long all of it may take.

    Returns:
        The directory of the run, and the tap of each client by partition id, with all that went over its connections.
    """
    directory.mkdir()
    federation, address = directory / "federation", Address("127.0.0.1", free_port())
    (directory / "config.yaml").write_text(config.to_yaml())
    assert main(["deploy", "init", str(federation), str(directory / "config.yaml"), "--address", str(address)]) == 0
    num_clients, log = config.partition.num_clients, directory / "server.log"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(started("deploy", "server", str(federation / "server"), "--insecure", log=log))
        taps = [stack.enter_context(contextlib.closing(Tap(address.port))) for _ in range(num_clients)]
        for client, tap in enumerate(taps):
            own = federation / f"client-{client}"
            (own / ClientSite.FILE).unlink()
            write_site(own, ClientSite(f"127.0.0.1:{tap.port}", client, num_clients))
            stack.enter_context(started("deploy", "client", str(own), "--insecure", log=directory / f"{own.name}.log"))
        assert server.wait(timeout_seconds) == 0, log.read_text()
    return federation / "server" / "run", taps


def check_models(federation: Path, examples_of: Callable[[int], Examples]) -> None:
    """Each device has its own model, of the accuracy it reported, and the federation's weights, as the server has them.

    What each device has of its own, its offset and how many batches it saw, stays there.

    Args:
        federation: The directory of a deployment that has ended.
        examples_of: What a client was evaluated on.
    """
    run = federation / "server" / "run"
    shared = read_weights(run / "model" / "model.safetensors")
    assert not list(run.rglob("private.safetensors"))
    for client, accuracy in read_json(run / "summary.json")["clients"].items():
        (state,) = (federation / f"client-{client}" / "state").glob("*/model")
        assert read_description(state).client == int(client)
        own = read_model(state)
        tensors = own.network.state_dict().items()
        assert all(torch.equal(each, shared[name]) for name, each in tensors if not name.endswith("_tracked"))
        assert evaluate(own.with_offset_(), examples_of(int(client))).accuracy == accuracy


def await_text(text: str, log: Path, process: subprocess.Popen[bytes], *, seconds: float) -> None:
    """Wait until a process that runs has said something."""
    await_that(lambda: text in log.read_text(), process, seconds=seconds, told=log.read_text)


def await_that(
    holds: Callable[[], bool], process: subprocess.Popen[bytes], *, seconds: float, told: Callable[[], str] = str
) -> None:
    """Wait until something holds while a process runs; `told` is what a failure shows."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, told()
        assert time.monotonic() < deadline, told()
        time.sleep(0.2)


@contextlib.contextmanager
def started(
    *arguments: str, log: Path, variables: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A command of `spatl`, stopped with all it started; `variables` are added to its environment."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "spatl", *arguments], stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
            env={**environment(log.parent / f"{log.name}-home"), "PYTHONUNBUFFERED": "1", **(variables or {})},
        )  # fmt: skip
    try:
        yield process
    finally:
        stop(process)
