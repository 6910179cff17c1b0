"""What the tests of the benchmark and of its command share."""

from pathlib import Path

import pytest

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
