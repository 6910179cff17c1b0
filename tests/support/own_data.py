"""Devices with data of their own, in this process."""

import numpy as np
import torch

from clients.app import app as client_app
from clients.store import DirectoryStore
from server.app import serve
from server.grids import InProcessGrid
from spatl.runs.checkpoint import load_checkpoint
from spatl.runs.log import logged_to
from tests.support.federations import tiny_config

NUMBERS = (200, 120, 60)
CLASSES = (range(4), range(4), (0, 1, 3))
RUN_NAME = "20260101-000000-ab"


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


def serve_devices(
    config, base, *, run=None, resume=False, absent=(), grid_type=InProcessGrid, strict=False, states=None
):
    """Run a config on devices of this process, each with a state and data of its own in `base`."""
    directory = base / "run" if run is None else run
    values = {"config": config.to_json(), "out": str(directory), "run": RUN_NAME}
    grid = grid_type(client_app, num_clients=config.partition.num_clients, run_config=values)
    for context in grid.contexts.values():
        client = context.node_config["partition-id"]
        context.node_config["data-dir"] = str(base / f"{client}.npz")
        context.node_config["state-dir"] = str(base / f"device-{client}" if states is None else states[client])
    keys = {node: node - 2 for node in grid.get_node_ids()}
    for client in absent:
        del grid.contexts[client + 2]
    directory.mkdir(exist_ok=True)
    with logged_to(directory / "log.jsonl"):
        return serve(grid, config, directory, resume=resume, keys=keys, devices=not strict)


def check_devices_control(base, config, num_examples, *, run=None, states=None, before=None):
    """Compare the server's c with the weighted sum of the c_i that lie on the devices, after the last round.

    Devices are those of `serve_devices` unless the directory of each one's state is given; of one that was stopped in
    the middle of a round, the state before that round counts.
    """
    state = load_checkpoint(base / "run" if run is None else run).state
    assert state.num_examples == num_examples
    expected = torch.zeros_like(state.control, dtype=torch.float64)
    for client, number in num_examples.items():
        place = base / f"device-{client}" / RUN_NAME if states is None else states[client]
        settled = DirectoryStore(place).load(before=before).settle(
            acknowledged_round=state.folded.get(client, 0), server_round=config.rounds,
            half_life=config.control.half_life,
        )  # fmt: skip
        expected += number / sum(num_examples.values()) * settled.control.double()
    torch.testing.assert_close(state.control.double(), expected, rtol=1e-4, atol=1e-6)
    assert float(expected.abs().max()) > 1e-4


def unreadable(path):
    path.write_text("no arrays")
