"""Section `resources`: what clients of a simulation share of a machine, or of a cluster."""

import sys
from typing import Annotated

from pydantic import BeforeValidator, Field

from spatl.config.sections import Count, Section, not_a_switch
from spatl.errors import ConfigError


class ResourcesConfig(Section):
    """Resources of this machine, or of a cluster, that clients of a simulation share."""

    workers: Annotated[int, BeforeValidator(not_a_switch), Field(ge=0, le=1024)] = 0
    """Processes that train clients side by side under `engine: inline`, on the processor (Linux): the same numbers to
    the bit, in less time. 0 trains one client after another in the process of the server."""
    cpus_per_client: Count = 1
    """CPU cores of one client under `engine: ray`."""
    gpus_per_client: Annotated[float, Field(ge=0)] = 0.0
    """GPUs, likewise; a fraction lets several clients share one."""
    ray_address: Annotated[str, Field(pattern=r"^[^\s/]+:[0-9]{1,5}$")] | None = None
    """A Ray cluster to train on, as `ray start --head` names it (host:port), of which this machine is a node; null
    starts Ray on this machine alone. All nodes need the same version of this package, and must see the run's directory
    (README)."""

    def check_groups(self, group_size: int) -> None:
        """Raise where clients would train as one program in processes of their own.

        Args:
            group_size: As of `training`.

        Raises:
            ValueError: They would.
        """
        if self.workers and group_size > 1:
            raise ValueError(
                f"training.group_size: {group_size} trains clients in the process of the server, and "
                f"resources.workers: {self.workers} in others: set one of them, e.g. resources.workers to 0"
            )

    def check_workers(self, *, device: str, threads: int) -> None:
        """Raise where processes cannot train the clients of a simulation in the server's place.

        Args:
            device: Where clients train, as PyTorch names it.
            threads: Of one client (`training.threads`).

        Raises:
            ConfigError: The system forks no process, or a client has a GPU, or several threads, which no fork inherits.
        """
        fault = ""
        if sys.platform != "linux":
            fault = f"needs a system that forks processes (Linux); this is {sys.platform}"
        elif not device.startswith("cpu"):
            fault = f"trains on the processor, training.device is {device} here: set it to cpu, or take engine: ray"
        elif threads != 1:
            fault = f"has one thread a client, training.threads is {threads}: set it to 1, or resources.workers to 0"
        if self.workers and fault:
            raise ConfigError(f"resources.workers: {self.workers} {fault}")
