"""What a run takes in memory and leaves on the disk for a network of some size."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from server.replies import blob_content, content_sections
from spatl.runs.checkpoint import load_checkpoint
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


@pytest.mark.slow
def test_a_message_that_was_read_is_gone_without_a_collection():
    """Flower's views of a message's records are cycles, which would keep blobs as large as the encoder for rounds."""
    gc.collect()
    gc.disable()
    try:
        content = blob_content(b"no blob")
        reference = weakref.ref(content)
        assert content_sections(content) == {}
        del content
        assert reference() is None
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("method", ["spatl", "fedavg"])
def test_two_clients_and_their_server_take_at_most_sixty_bytes_a_parameter(method):
    """A process of its own, with what a tiny run takes left out: `python -m tests.studies.memory large METHOD`."""
    arguments = [sys.executable, "-m", "tests.studies.memory", "large", method]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)
    title, sizes = done.stdout.splitlines()[-2:]
    assert title.startswith(f"{method}, 10,124,106 parameters")
    assert 20 < float(sizes.split()[1]) <= 60
