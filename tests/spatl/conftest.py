"""What the tests of the benchmark and of its command share."""

from pathlib import Path

import pytest

from spatl import run
from tests.support.federations import tiny_config

BENCH = """
rounds: 3
partition: {name: iid, num_clients: 4}
model: {name: cnn, options: {channels: [4, 6], hidden: 12}}
training: {local_steps: 3, batch_size: 16, device: cpu}
bench: {seeds: [1, 2], targets: [0.3, 0.2], methods: {fedavg: {}, spatl: {selection: {selector: random}}, local: {}}}
"""


@pytest.fixture
def bench_config(tmp_path: Path) -> Path:
    """A small benchmark's config file."""
    path = tmp_path / "bench.yaml"
    path.write_text(BENCH)
    return path


@pytest.fixture(scope="session")
def explained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model still makes mistakes and whose clients choose channels, which nobody may change."""
    directory = tmp_path_factory.mktemp("explain") / "run"
    config = tiny_config(rounds=2, training={"learning_rate": 0.1}, selection={"selector": "random"})
    run(config, directory, pictures=False, progress=False)
    return directory
