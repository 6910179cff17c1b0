"""Who takes part in a round of a deployment is drawn from a secret that the server's checkpoint keeps."""

import pytest

from spatl.rounds.sampling import sample_clients
from spatl.runs.checkpoint import load_checkpoint
from spatl.runs.records import read_lines
from tests.support.federations import run_tiny, tiny_config
from tests.support.lossy import Clock, serve_over


@pytest.mark.slow
def test_devices_are_drawn_from_a_secret_and_simulated_clients_from_the_runs_seed(tmp_path, monkeypatch):
    config = tiny_config(
        method="fedavg", partition={"name": "iid", "num_clients": 5}, server={"fraction_train": 0.4}, rounds=3
    )
    serve_over(config, tmp_path, Clock(), loses=lambda *_: False, patch=monkeypatch)
    run_tiny(config, tmp_path / "simulated")
    for directory, secret in ((tmp_path / "run", True), (tmp_path / "simulated", False)):
        kept = load_checkpoint(directory)
        assert kept is not None
        assert (kept.state.sampling_seed is not None) == secret
        if kept.state.sampling_seed is not None:
            assert kept.state.sampling_seed.bit_length() > 64
            assert all(
                str(kept.state.sampling_seed) not in path.read_text(errors="ignore")
                for path in directory.rglob("*") if path.is_file() and path.name.endswith((".json", ".jsonl", ".yaml"))
            )  # fmt: skip
        seed = config.seed if kept.state.sampling_seed is None else kept.state.sampling_seed
        rows = read_lines(directory / "clients.jsonl")
        taken = [
            tuple(each["client"] for each in rows if each["round"] == number and each["participated"])
            for number in (1, 2, 3)
        ]
        drawn = [sample_clients(range(5), fraction=0.4, seed=seed, server_round=number) for number in (1, 2, 3)]
        assert taken == drawn
