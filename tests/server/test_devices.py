"""What a deployed client's node says of its own machine goes before what the server says."""

import numpy as np
import pytest

from clients.app import app as client_app
from server.app import serve
from server.grids import InProcessGrid
from spatl.config.loading import on_device, parse_config
from spatl.errors import ConfigError, SpatlError
from spatl.runs.records import read_lines
from tests.support.federations import kept_state, run_tiny, tiny_config


def run_on_devices(config, directory, devices, **run_config):
    """Each client's node with a config of its own."""
    values = {"config": config.to_json(), "out": str(directory), **run_config}
    grid = InProcessGrid(client_app, num_clients=config.partition.num_clients, run_config=values)
    for context in grid.contexts.values():
        context.node_config.update(devices.get(context.node_config["partition-id"], {}))
    serve(grid, config, directory)


def fingerprints(directory):
    return [row["encoder_fingerprint"] for row in read_lines(directory / "history.jsonl")]


@pytest.mark.slow
def test_a_device_keeps_its_state_where_its_node_says(tmp_path):
    config = tiny_config(partition={"num_clients": 2})
    run_on_devices(config, tmp_path / "run", {1: {"state-dir": str(tmp_path / "device")}}, run="20260101-000000-ab")
    assert (tmp_path / "device" / "20260101-000000-ab" / "state.safetensors").exists()
    assert [kept_state(tmp_path / "run", client) is not None for client in (0, 1)] == [True, False]


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", ".", "a b", "x" * 300])
def test_a_server_cannot_name_a_run_out_of_the_devices_directory(tmp_path, name):
    config = tiny_config(partition={"num_clients": 2})
    with pytest.raises(SpatlError, match="letters, digits and hyphens"):
        run_on_devices(config, tmp_path / "run", {0: {"state-dir": str(tmp_path / "device")}}, run=name)


@pytest.mark.slow
def test_a_device_trains_where_its_node_says(tmp_path):
    config = tiny_config(training={"device": "auto"}, partition={"num_clients": 2})
    with pytest.raises(SpatlError, match=r"training\.device is cuda:99"):
        run_on_devices(config, tmp_path, {1: {"device": "cuda:99"}})


@pytest.mark.slow
def test_a_devices_own_copy_of_the_data_may_lie_anywhere(tmp_path):
    """The server's path means nothing there, and with the same data the encoders are the same."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (120, 8, 8), dtype=np.uint8), np.arange(120) % 3
    for name in ("server", "device"):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels)
    data = {"name": "npz", "options": {"path": str(tmp_path / "server.npz")}}
    config = tiny_config(data=data, partition={"num_clients": 2})
    run_tiny(config, tmp_path / "inline")
    run_on_devices(config, tmp_path / "run", {0: {"data-dir": str(tmp_path / "device.npz")}})
    assert fingerprints(tmp_path / "run") == fingerprints(tmp_path / "inline")
    with pytest.raises(SpatlError, match="nowhere"):
        run_on_devices(config, tmp_path / "other", {0: {"data-dir": str(tmp_path / "nowhere.npz")}})


def test_data_that_are_read_from_no_path_have_no_other_one():
    with pytest.raises(ConfigError, match="data set 'digits' is read from no path"):
        on_device(parse_config({}), data="/somewhere")


def test_a_path_of_the_devices_own_goes_before_the_hub():
    config = on_device(parse_config({"data": {"name": "cifar10", "options": {"hub": True}}}), data="/own", device="cpu")
    assert config.data.options == {"path": "/own"}
    assert config.training.device == "cpu"
