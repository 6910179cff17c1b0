"""What devices have agreed on, as a config holds it."""

import json

import pytest
import yaml

from spatl.config.loading import parse_config
from spatl.errors import ConfigError


@pytest.mark.parametrize(
    ("agreed", "message"),
    [
        ({"classes": ["a"]}, "two classes or more"),
        ({"classes": ["a", "a"]}, "named twice"),
        ({"classes": ["a", "b" * 201]}, "1 to 200 characters"),
        ({"shape": [1, 8, 8, 8, 8]}, "channels x height x width"),
        ({"shape": [2, 8]}, "means and deviations of 2 channels"),
        ({"scale": "feature"}, "means and deviations of 64 channels"),
        ({"scale": "none", "num_tokens": 5}, "means and deviations of 0 channels"),
        ({"num_tokens": 5}, "tokens have no scale"),
        ({"means": [0.0, 0.0]}, "means and deviations of 1 channels"),
        ({"deviations": [0.0]}, "greater than 0"),
        ({"means": [float("nan")]}, "finite number"),
    ],
)
def test_an_agreement_that_cannot_hold_is_refused(agreed, message):
    whole = {"classes": ["a", "b"], "shape": [1, 8, 8], "means": [0.0], "deviations": [1.0], **agreed}
    with pytest.raises(ConfigError, match=message):
        parse_config({"data": {"agreed": whole}})


def test_an_agreement_passes_through_a_config_to_the_last_bit():
    means = [1 / 3, 1e-17, -123456.789]
    agreed = {"classes": ["no", "yes"], "shape": [3, 8, 8], "means": means, "deviations": [1e-5, 0.1, 3e10]}
    config = parse_config({"data": {"agreed": agreed}})
    assert parse_config(yaml.safe_load(config.to_yaml())) == config
    assert parse_config(json.loads(config.to_json())) == config
