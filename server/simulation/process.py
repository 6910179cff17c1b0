"""Process of a simulation, in the place of Flower's `flwr-simulation`, in which Ray's workers that die are replaced.

In Flower 1.41 a dead worker goes back among the idle ones and is asked again and again: it answers everybody's messages
with an error at once. Here Ray starts another in its place, which does once more what the dead one was at; a client
does a round twice to the same bytes. Where that one dies too, the message is lost, as on a network. Where Ray itself is
gone, so is the simulation: the run ends, and goes on from its checkpoint.
"""

import os
import sys
import threading
from pathlib import Path
from typing import NoReturn

import ray
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode
from flwr.server.superlink.fleet.vce.backend import raybackend
from flwr.server.superlink.fleet.vce.backend.backend import BackendConfig
from flwr.simulation.app import flwr_simulation
from ray.exceptions import RayError, RayTaskError

from server.simulation.cluster import check_address, check_nodes, nodes
from spatl.deployment.processes import RAY_VARIABLE, REASON_VARIABLE, RUN_VARIABLE, end_with_parent
from spatl.errors import SpatlError

WATCH_SECONDS = 0.5
"""Time between two looks at Ray's servers."""
_ALWAYS = -1
_RETRIES = 1
_SERVERS = {"gcs_server", "raylet"}


class LastingBackend(raybackend.RayBackend):
    """Flower's backend, with workers that are started again when they die."""

    def __init__(self, backend_config: BackendConfig) -> None:
        self._nodes: dict[str, str] = {}
        super().__init__(backend_config)
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="spatl-ray", daemon=True).start()

    def init_ray(self, backend_config: BackendConfig) -> None:
        """Start Ray on this machine, or join the cluster that the run's config names."""
        address = os.environ.get(RAY_VARIABLE)
        if not address:
            super().init_ray(backend_config)
            return
        try:
            check_address(address)
            super().init_ray({**backend_config, self.init_args_key: {"address": address, "log_to_driver": False}})
            self._nodes = nodes()
            check_nodes(Path(os.environ[RUN_VARIABLE]), self._nodes)
        except SpatlError as error:
            _end(str(error))
        except (RayError, OSError, RuntimeError, ValueError) as error:  # versions differ, this is no node of it
            _end(f"cannot join the Ray cluster at {address}: {' '.join(str(error).split())}")

    def _validate_client_resources(self, config: BackendConfig) -> dict[str, int | float]:
        """Return the options of Ray's that a worker is made with."""
        return {
            **super()._validate_client_resources(config), "max_restarts": _ALWAYS, "max_task_retries": _RETRIES,
        }  # fmt: skip

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        """Have a worker handle a message; where it cannot, the reply is Flower's own error of a node that is gone."""
        try:
            return super().process_message(message, context)
        except RayTaskError:  # what the client's code raised
            raise
        except RayError as error:
            self._check_ray()
            reason = f"the Ray worker that was at it died: {' '.join(str(error).split())}"
            return Message(Error(code=ErrorCode.NODE_UNAVAILABLE, reason=reason), reply_to=message), context

    def terminate(self) -> None:
        """Stop the workers and Ray."""
        self._over.set()
        super().terminate()

    def _watch(self) -> None:
        while not self._over.wait(WATCH_SECONDS):
            self._check_ray()

    def _check_ray(self) -> None:
        """End this process where one of Ray's servers, which it has started, is gone before it was stopped."""
        node = ray._private.worker._global_node
        dead: list[tuple[str, object]] = [] if node is None else node.dead_processes()
        gone = _SERVERS & {name for name, _ in dead}
        if gone and not self._over.is_set():
            _end(f"Ray's {min(gone)} is gone")
        if self._nodes:
            self._check_cluster(os.environ[RAY_VARIABLE])

    def _check_cluster(self, address: str) -> None:
        """End this process where the cluster, or a node of it, is gone, or a new one cannot take part."""
        try:
            check_address(address)  # Ray itself would wait for its server
            found = nodes()
            new = {node_id: name for node_id, name in found.items() if node_id not in self._nodes}
            if new:  # a worker that dies may be started there
                check_nodes(Path(os.environ[RUN_VARIABLE]), new)
        except SpatlError as error:
            if not self._over.is_set():
                _end(str(error))
            return
        lost = self._nodes.keys() - found.keys()
        self._nodes |= new
        if lost and not self._over.is_set():  # what it was at would wait for a place on the others, which are full
            _end(f"node {self._nodes[min(lost)]} of the Ray cluster is gone")


def _end(reason: str) -> NoReturn:
    """End this process at once; before a round is written in which nobody could answer."""
    Path(os.environ[REASON_VARIABLE]).write_text(reason, encoding="utf-8")
    print(f"spatl: {reason}", file=sys.stderr, flush=True)
    os._exit(1)


def main() -> None:
    """Run the simulation as Flower does; once the process that started this one is gone, end with all below."""
    end_with_parent()
    raybackend.RayBackend = LastingBackend  # type: ignore[misc]  # the simulation takes it from there
    sys.argv[0] = "flwr-simulation"
    flwr_simulation()


if __name__ == "__main__":
    main()
