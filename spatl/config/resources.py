"""Section `resources`: what clients of a simulation share of a machine, or of a cluster."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from spatl.config.sections import Count, Section, not_a_switch


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
