"""Cluster of Ray's that is there already: joined, and looked at before a run of clients is put on its nodes.

A client's state lies below the run's directory, and is read by whichever node trains it next: so all nodes must see
that directory. They run what is installed there, and must have the same version of it.
"""

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from spatl import __version__
from spatl.errors import SpatlError

_CONNECT_SECONDS = 5.0
_LOOK_SECONDS = 120.0  # in which a node starts a worker that imports this package
_SPACES = re.compile(r"\s+")


def check_address(address: str) -> None:
    """Raise unless something listens at an address: Ray itself looks for a minute and more.

    Raises:
        SpatlError: Nothing does.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise SpatlError(
            f"resources.ray_address: no Ray cluster answers at {address} ({error.strerror or error}); start one there "
            "(ray start --head), and this machine as a node of it (ray start --address)"
        ) from None


def nodes() -> dict[str, str]:
    """Return the name of each node of the cluster that is there, by Ray's id of it."""
    found = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
    return {node_id: f"{node['NodeManagerHostname']} ({node_id[:8]})" for node_id, node in found.items()}


def check_nodes(directory: Path, found: Mapping[str, str]) -> None:
    """Raise unless each node has this version of the package, and sees the run's directory.

    Raises:
        SpatlError: One does not; it is named.
    """
    mark = directory / f".cluster-{os.getpid()}"
    mark.touch()
    try:
        looks = {
            _look.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(
                str(mark)
            ): name
            for node_id, name in found.items()
        }
        for look, name in looks.items():
            try:
                version, is_seen = ray.get(look, timeout=_LOOK_SECONDS)
            except RayError as error:
                told = _SPACES.sub(" ", str(error))[-300:]
                raise SpatlError(f"node {name} of the Ray cluster cannot run this package: {told}") from None
            if version != __version__:
                raise SpatlError(f"node {name} of the Ray cluster has spatl {version}, this machine {__version__}")
            if not is_seen:
                raise SpatlError(
                    f"node {name} of the Ray cluster does not see {directory}: the clients' states lie there, so put "
                    "the run on storage that all nodes share (--out)"
                )
    finally:
        mark.unlink(missing_ok=True)


@ray.remote
def _look(mark: str) -> tuple[str, bool]:
    import spatl  # of the node that this runs on

    return spatl.__version__, Path(mark).exists()
