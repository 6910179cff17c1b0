"""Devices with data of their own, in this process."""

import numpy as np

from clients.app import app as client_app
from server.app import serve
from server.grids import InProcessGrid
from spatl.runs.log import logged_to
from tests.support.federations import tiny_config

NUMBERS = (200, 120, 60)
CLASSES = (range(4), range(4), (0, 1, 3))


def write_data(path, number, classes, *, seed=0, size=8, offset=0):
    """Images of stripes: the class is the row that is bright."""
    rng = np.random.default_rng(seed)
    labels = np.array(list(classes))[np.arange(number) % len(classes)]
    images = rng.integers(0, 60, (number, size, size))
    images[np.arange(number), 2 * labels + offset % 2] += 150
    np.savez(path, images=images.astype(np.uint8), labels=labels)


def own_config(**sections):
    values = {"data": {"name": "npz"}, "partition": {"name": "own", "num_clients": 3}, "rounds": 2,
              "server": {"connect_timeout_seconds": 0.2}, "method": "fedavg"}  # fmt: skip
    return tiny_config(**{**values, **sections})


def serve_devices(config, base, *, resume=False, absent=(), grid_type=InProcessGrid, strict=False):
    """Run a config on devices of this process, each with a state and data of its own."""
    directory = base / "run"
    values = {"config": config.to_json(), "out": str(directory), "run": "20260101-000000-ab"}
    grid = grid_type(client_app, num_clients=config.partition.num_clients, run_config=values)
    for context in grid.contexts.values():
        client = context.node_config["partition-id"]
        context.node_config["data-dir"] = str(base / f"{client}.npz")
        context.node_config["state-dir"] = str(base / f"device-{client}")
    keys = {node: node - 2 for node in grid.get_node_ids()}
    for client in absent:
        del grid.contexts[client + 2]
    directory.mkdir(exist_ok=True)
    with logged_to(directory / "log.jsonl"):
        return serve(grid, config, directory, resume=resume, keys=keys, devices=not strict)


def unreadable(path):
    path.write_text("no arrays")
