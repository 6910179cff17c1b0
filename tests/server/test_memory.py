"""What a run leaves on the disk for a network of some size."""

import pytest

from server.checkpoint import load_checkpoint
from tests.support.federations import blueprint_of, run_tiny, tiny_config


@pytest.mark.slow
@pytest.mark.parametrize(("method", "most"), [("spatl", 12), ("scaffold", 12), ("fedavg", 4)])
def test_a_checkpoint_takes_at_most_twelve_bytes_a_parameter(method, most, tmp_path):
    """x, c, c as the clients hold it, and what x_hat has changed by: four vectors of four bytes as they are."""
    config = tiny_config(
        method=method, partition={"num_clients": 2}, model={"options": {"channels": [32, 64], "hidden": 1024}}
    )
    run_tiny(config, tmp_path)
    number = sum(parameter.numel() for parameter in blueprint_of(config).model.parameters())
    assert number > 250_000
    assert (tmp_path / "server.checkpoint").stat().st_size <= most * number
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.state.encoder.shape == (number,)
