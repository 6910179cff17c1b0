"""The configs that ship, by name, from any folder."""

from pathlib import Path

import pytest

from spatl.config.loading import load_config
from spatl.config.shipped import config_path, opening_words, shipped_configs
from spatl.errors import ConfigError

CONFIGS = Path(__file__).parents[3] / "configs"


def test_every_config_has_a_name():
    assert sorted(shipped_configs().values()) == sorted(CONFIGS.rglob("*.yaml"))
    assert next(iter(shipped_configs())) == "quickstart"


@pytest.mark.parametrize("name", shipped_configs())
def test_a_config_is_found_by_its_name_in_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(name) == load_config(f"{name}.yaml") == load_config(CONFIGS / f"{name}.yaml")


def test_a_file_of_the_user_goes_before_the_config_that_ships(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.yaml").write_text("rounds: 3\n")
    assert load_config("quickstart.yaml").rounds == 3
    assert load_config("quickstart").rounds == 40
    assert config_path("quickstart.yaml") == Path("quickstart.yaml")


def test_a_folder_of_that_name_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert load_config("quickstart").rounds == 40


@pytest.mark.parametrize("name", ["quikstart", "configs/quickstart.yaml", "bench/digit"])
def test_a_name_that_is_none_is_told_which_it_may_have_been(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"not found: {name} \(did you mean '\w+.*\?\); `spatl show configs`"):
        load_config(name)


def test_what_a_config_is_stands_in_its_first_sentence():
    assert opening_words(CONFIGS / "paper" / "femnist.yaml") == "FEMNIST by writer, two-layer CNN."
    assert opening_words(CONFIGS / "deploy" / "small.yaml").endswith("on any machine.")
    assert all(20 < len(opening_words(path)) < 160 for path in shipped_configs().values())
