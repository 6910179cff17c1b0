"""Every setting, as `spatl show settings` tells it."""

import pytest

from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config, with_overrides
from spatl.config.settings import all_settings, find_settings, section_meanings, setting_keys
from spatl.errors import ConfigError
from spatl.methods import METHODS


def test_every_leaf_of_the_config_is_a_setting():
    """What a resolved config file holds, and what only benchmarks and experiments read."""

    def leaves(values, fields, prefix=""):
        for name, value in values.items():
            inner = fields[name].annotation
            if hasattr(inner, "model_fields"):
                yield from leaves(value, inner.model_fields, f"{prefix}{name}.")
            else:
                yield prefix + name

    values = ExperimentConfig().model_dump()
    keys = [key for key in setting_keys() if not key.startswith(("bench.", "saliency."))]
    assert sorted(leaves(values, ExperimentConfig.model_fields)) == sorted(keys)
    assert {key for key in setting_keys() if key.startswith("bench.")} >= {"bench.seeds", "bench.ablations.full"}
    assert {"saliency.claims", "saliency.top_k"} <= set(setting_keys())


def test_every_setting_and_section_says_what_it_means():
    assert [setting.key for setting in all_settings() if len(setting.meaning) < 5] == []
    assert [section for section, meaning in section_meanings().items() if not meaning.endswith(".")] == []


@pytest.mark.parametrize("setting", all_settings(), ids=lambda setting: setting.key)
def test_a_default_can_be_set_as_it_is_shown_and_is_the_default(setting):
    values = with_overrides({}, [f"{setting.key}={setting.default}"])
    # A method's own default goes before the general one only where nothing is said, so compare with one that has none.
    plain = {"method": "fedavg-calibrated"} if setting.key != "method" else {}
    assert parse_config({**plain, **values}) == parse_config(plain)


@pytest.mark.parametrize("value", [10**30, 10**400, 1e308, 1e-308])
def test_a_number_of_any_size_is_taken_or_refused_as_a_mistake_and_sizes_follow_from_it(value):
    """A server's config reaches devices: no number of it may end in an error of Python's."""
    taken = 0
    for setting in all_settings():
        values = with_overrides({}, [f"{setting.key}={value}"])
        try:
            config = parse_config({"method": "fedavg-calibrated", **values})
        except ConfigError:
            continue
        taken += 1
        assert config.budget(0).limit < 10**16
        assert config.wire.target_ratio is None or config.wire.target_ratio >= 1e-3
    assert taken > 0


def test_the_defaults_of_methods_are_those_that_a_run_has():
    for setting in all_settings():
        for method, shown in setting.of_methods.items():
            whole = parse_config({"method": method})
            value = whole
            for part in setting.key.split("."):
                value = getattr(value, part)
            given = with_overrides({}, [f"{setting.key}={shown}"])
            assert parse_config({**given, "method": method}) == whole, (setting.key, method)
    (rate,) = find_settings(["training.learning_rate"])
    assert rate.of_methods.keys() == {
        m for m, row in METHODS.items() if "learning_rate" in row.defaults.get("training", {})
    }


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["seed"], ["seed"]),
        (["privacy"], ["privacy.noise_multiplier", "privacy.clip", "privacy.delta"]),
        (["bench.ablations"], ["bench.ablations.full", "bench.ablations.without"]),
        (["clip"], ["server.clip", "privacy.clip"]),
        (["wire.uplink", "seed"], ["wire.uplink", "seed"]),
    ],
)
def test_settings_are_found_by_section_key_or_last_word(names, keys):
    assert [setting.key for setting in find_settings(names)] == keys


def test_an_unknown_name_is_an_error_that_names_the_closest():
    with pytest.raises(ConfigError, match=r"'trianing' \(did you mean 'training'\?\); sections: data, "):
        find_settings(["trianing"])
