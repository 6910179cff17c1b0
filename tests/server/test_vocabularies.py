"""Devices whose own data are sentences in a large vocabulary."""

import hashlib
import sys

import numpy as np
import pytest

from spatl.artifacts.model_files import read_model
from spatl.config.loading import load_config
from spatl.errors import SpatlError
from spatl.json_files import read_json
from tests.support.own_data import own_config, serve_devices

GPT2 = 50_257


NETWORK = """from torch import nn


def small(num_tokens, num_classes):
    return nn.Sequential(nn.Embedding(num_tokens, 2), nn.Linear(2, num_classes))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with a network that reads each token by itself, which the devices' owner has listed."""
    (tmp_path / "net_of_tokens.py").write_text(NETWORK)
    (tmp_path / "device.yaml").write_text(
        f"files: {{net_of_tokens.py: '{hashlib.sha256(NETWORK.encode()).hexdigest()}'}}"
    )
    (tmp_path / "device.yaml").chmod(0o600)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("net_of_tokens", None)


def write_sentences(path, *, highest, seed):
    """Sentences in which 7 and the highest token take turns."""
    start = np.random.default_rng(seed).integers(2, size=40)[:, None]
    tokens = np.where((start + np.arange(9)) % 2, highest, 7)
    np.savez(path, inputs=tokens[:, :-1], targets=tokens[:, 1:])


def config_with(clients=2, **data):
    return own_config(
        task={"name": "next-token"}, model={"name": "net_of_tokens:small", "cut": ["1"], "options": {}}, rounds=1,
        partition={"name": "own", "num_clients": clients},
        data={"name": "npz", **data}, server={"connect_timeout_seconds": 0.2, "min_replies": 1},
        training={"local_steps": 2, "optimizer": "adam", "learning_rate": 0.1},
    )  # fmt: skip


@pytest.mark.slow
def test_devices_with_the_tokens_of_gpt2_register_and_train(place):
    for client, highest in enumerate((300, GPT2 - 1)):
        write_sentences(place / f"{client}.npz", highest=highest, seed=client)
    summary = serve_devices(config_with(), place)
    agreed = load_config(place / "run" / "config.yaml").data.agreed
    assert (summary["num_clients"], agreed.num_tokens, len(agreed.classes)) == (2, GPT2, GPT2)
    assert (place / "run" / "config.yaml").stat().st_size < 10_000
    assert summary["metrics"]["perplexity_pooled"] < GPT2
    assert read_model(place / "run").network[1].weight.shape == (GPT2, 2)


@pytest.mark.slow
def test_a_device_with_a_token_that_is_none_is_left_out_by_name(place):
    for client, highest in enumerate((30, 99, 100)):
        write_sentences(place / f"{client}.npz", highest=highest, seed=client)
    summary = serve_devices(config_with(3, num_tokens=100), place)
    assert list(summary["absent"]) == ["2"]
    assert "data.num_tokens is 100, so that tokens must lie in [0, 100), but 'npz' has 100" in summary["absent"]["2"]
    assert read_json(place / "run" / "registration.json")["absent"].keys() == {"2"}


@pytest.mark.slow
def test_where_all_have_more_tokens_than_anybody_said_the_run_says_what_to_set(place):
    for client in range(2):
        write_sentences(place / f"{client}.npz", highest=70_000, seed=client)
    with pytest.raises(SpatlError, match=r"client 1: it has 70001 tokens, clients may have 65536 .* set it"):
        serve_devices(config_with(), place)
