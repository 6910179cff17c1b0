"""Runs with noise: what they tell, what they repeat, and what noise would not cover."""

import re

import pytest

from spatl.config.loading import parse_config
from spatl.errors import ConfigError
from spatl.json_files import read_json
from spatl.rounds.privacy import epsilon_of
from spatl.runs.records import read_lines
from tests.support.federations import run_tiny, tiny_config

PRIVATE = {"noise_multiplier": 2.0, "clip": 0.5, "delta": 1e-3}


@pytest.mark.slow
def test_a_private_run_tells_its_epsilon_and_its_noise_is_not_the_seeds(tmp_path):
    config = tiny_config(method="spatl-no-control", privacy=PRIVATE)
    for name in ("one", "other"):
        run_tiny(config, tmp_path / name)
    one, other = (read_lines(tmp_path / name / "history.jsonl") for name in ("one", "other"))
    assert one[0]["accuracy"] == other[0]["accuracy"]  # before the first noise
    assert {row["encoder_fingerprint"] for row in one}.isdisjoint(row["encoder_fingerprint"] for row in other)
    summary = read_json(tmp_path / "one" / "summary.json")
    assert (summary["epsilon"], summary["delta"]) == (epsilon_of(2.0, config.rounds, 1e-3), 1e-3)


@pytest.mark.slow
def test_a_run_without_noise_claims_no_epsilon(tmp_path):
    run_tiny(tiny_config(rounds=1), tmp_path)
    assert "epsilon" not in read_json(tmp_path / "summary.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "spatl"}, "take a method such as spatl-no-control"),
        ({"method": "fednova"}, "take a method such as spatl-no-control"),
        ({"method": "ssfl"}, "take a method such as spatl-no-control"),
        ({"server": {"aggregation": "median"}}, "leave server.aggregation and server.clip out"),
        ({"server": {"clip": 2.0}}, "leave server.aggregation and server.clip out"),
        ({"training": {"batch_norm": "shared"}}, "set training.batch_norm: local"),
    ],
)
def test_what_noise_would_not_cover_is_refused(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_config({"method": "fedavg", "privacy": PRIVATE, **changes})
