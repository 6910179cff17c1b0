"""SuperLink of a simulation that ends with the run: `python -m server.simulation.superlink SCRATCH`, Flower's options.

Everything else hangs on it: Flower's SuperExec, the process of the simulation, Ray's servers and workers. Where the run
is killed, nobody would stop them, and they would finish it alone.
"""

import sys
from pathlib import Path

from flwr.superlink.cli import flower_superlink

from spatl.deployment.processes import adopt_orphans, end_with_parent


def main() -> None:
    """Run Flower's SuperLink; once the run is gone, end with all below, and remove the directory SCRATCH."""
    _, scratch, *flowers = sys.argv
    adopt_orphans()  # Ray's agents, when its servers were killed
    end_with_parent(remove=Path(scratch))
    sys.argv = ["flower-superlink", *flowers]
    flower_superlink()


if __name__ == "__main__":
    main()
