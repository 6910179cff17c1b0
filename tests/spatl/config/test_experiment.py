"""A config is right in itself, does not change, and what it resolves to can be read again."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import config_from_json, parse_config


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**60),
    rounds=st.integers(1, 1000),
    learning_rate=st.floats(1e-6, 10),
    half_life=st.one_of(st.none(), st.floats(0.1, 100)),
)
def test_yaml_and_json_round_trip(seed, rounds, learning_rate, half_life):
    config = parse_config(
        {
            "seed": seed,
            "rounds": rounds,
            "training": {"learning_rate": learning_rate},
            "control": {"half_life": half_life},
        }
    )
    assert config_from_json(config.to_json()) == config
    assert parse_config(yaml.safe_load(config.to_yaml())) == config


def test_a_config_does_not_change_after_it_was_made():
    with pytest.raises(ValueError, match="frozen"):
        ExperimentConfig().training.learning_rate = 3.0


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"name": "npz", "options": {"path": "a.npz"}}, "/here/a.npz"),
        ({"name": "npz", "options": {"path": "/there/a.npz"}}, "/there/a.npz"),
        ({"name": "cifar10", "options": {"part": "test"}}, "/here/data"),
        ({"name": "cifar10", "options": {"hub": True}}, None),
        ({"name": "npz"}, None),
        ({"name": "digits"}, None),
    ],
)
def test_a_path_of_the_data_can_be_fixed_before_other_processes_start(data, path):
    config = parse_config({"data": data, "seed": 4})
    located = config.located(Path("/here"))
    assert located.data.options.get("path") == path
    assert located.seed == 4
    assert located == config or path is not None
