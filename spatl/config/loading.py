"""Loading of a configuration from YAML, JSON, `--set` and a device's own values; a mistake is one line."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ValidationError

from spatl.channels.budgets import Budget
from spatl.config.experiment import ExperimentConfig
from spatl.config.selection import BudgetConfig
from spatl.config.shipped import config_path, shipped_configs
from spatl.config.training import ClientTraining, TrainingConfig
from spatl.config.yaml_text import MOST_CHARACTERS, RepeatedKey, load_yaml
from spatl.data.datasets import is_read_from_path
from spatl.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from spatl.data.own import Agreement


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read a config file and apply `section.key=value` overrides, whose values are YAML; of two alike the last counts.

    Raises:
        ConfigError: The file is missing or not YAML, a key stands twice in it, or a key or value is not allowed.
    """
    return parse_config(read_config(path, overrides))


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a config file and apply overrides as `load_config` does, without checking keys and values.

    Raises:
        ConfigError: The file is missing or not YAML, or a key stands twice in it.
    """
    given, path = str(path), config_path(path)
    try:
        content = read_mapping(path)
    except FileNotFoundError:
        close = did_you_mean(given, shipped_configs())
        raise ConfigError(
            f"config file not found: {given}{close}; `spatl show configs` lists those that ship"
        ) from None
    return with_overrides(content, overrides)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file of keys and values.

    Raises:
        FileNotFoundError: It is not there.
        ConfigError: It cannot be read, is not YAML or no mapping, is too long, or a key stands twice in it.
    """
    try:
        content = load_yaml(_text_of(path))
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read config file {path}: {error}") from error
    except RepeatedKey as error:
        raise ConfigError(f"{path}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # a ValueError of a date that is none
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values at the top level, got {type(content).__name__}")
    return content


def _text_of(path: Path) -> str:
    """Return a config's text; of one that is too long, enough to see that it is."""
    with path.open(encoding="utf-8") as file:
        return file.read(MOST_CHARACTERS + 1)


def parse_config(values: Mapping[str, Any]) -> ExperimentConfig:
    """Make a config from nested mappings.

    Raises:
        ConfigError: A key or value is not allowed.
    """
    try:
        return ExperimentConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(mistakes_in(error)) from None


def parse_budget(values: Mapping[str, Any]) -> Budget | None:
    """Make a budget from at most one of `keep_ratio`, `flops_ratio` and `uplink_bytes`.

    Raises:
        ConfigError: A value is not allowed, or there is more than one.
    """
    try:
        return BudgetConfig.model_validate(dict(values)).own_budget()
    except ValidationError as error:
        raise ConfigError(mistakes_in(error)) from None


@lru_cache(maxsize=4)  # every message of a run brings it
def config_from_json(text: str) -> ExperimentConfig:
    """Make a config from what `ExperimentConfig.to_json` wrote, once for each text: nobody may change it.

    Raises:
        ConfigError: The text is not JSON, or a key or value is not allowed.
    """
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"the run's config has {len(text):,} characters, of {MOST_CHARACTERS:,} that are possible")
    try:
        values = json.loads(text, object_pairs_hook=_each_key_once)
    except RecursionError:
        raise ConfigError("the run's config is nested too deeply") from None
    except RepeatedKey as error:
        raise ConfigError(f"the run's config: {error}") from None
    except ValueError as error:  # of JSON, or of a number with more digits than any has
        raise ConfigError(f"the run's config is not valid JSON: {error}") from error
    return parse_config(values)


def config_from_run(run_config: Mapping[str, Any], *, reads_files: bool = True) -> ExperimentConfig:
    """Make a config from Flower's flat `run_config`, whose key `config` holds JSON, or the path of a YAML file.

    A relative path counts from the directory that holds the packages, which is the app's own in a Flower app bundle.

    Args:
        run_config: Flower's.
        reads_files: Whether a path will do; not on a device, whose files are none of the server's affair.

    Raises:
        ConfigError: The key is missing, or what it holds is not a config.
    """
    text = str(run_config.get("config", ""))
    if not text:
        raise ConfigError(
            "the run has no config; give one: flwr run . --run-config 'config=\"configs/quickstart.yaml\"'"
        )
    if text.lstrip().startswith("{"):
        return config_from_json(text)
    if not reads_files:
        raise ConfigError("the run's config must be a config as JSON, got the path of a file, which no device opens")
    return load_config(Path(__file__).parents[2] / text)


def with_clients(config: ExperimentConfig, number: int) -> ExperimentConfig:
    """Return a config with another number of clients."""
    return config.model_copy(update={"partition": config.partition.model_copy(update={"num_clients": number})})


def with_agreement(config: ExperimentConfig, agreement: "Agreement") -> ExperimentConfig:
    """Return the config of devices that have agreed on what their data have in common (`data.agreed`)."""
    agreed = parse_config({"data": {"agreed": agreement.told()}}).data.agreed
    return config.model_copy(update={"data": config.data.model_copy(update={"agreed": agreed})})


def on_device(config: ExperimentConfig, *, device: str | None = None, data: str | None = None) -> ExperimentConfig:
    """Return the config as one deployed client runs it.

    Args:
        config: What the server sent.
        device: The client's own `training.device`; the config's if not given.
        data: Where its copy of the data set lies, in place of `data.options.path`.

    Raises:
        ConfigError: The device is none, or the data set has no path.
    """
    if device is not None:
        training = parse_config({"training": {"device": device}}).training
        config = config.model_copy(update={"training": config.training.model_copy(update={"device": training.device})})
    if data is not None:
        if not is_read_from_path(config.data.name):
            raise ConfigError(f"data set {config.data.name!r} is read from no path; leave out {data}")
        options = {key: value for key, value in config.data.options.items() if key != "hub"} | {"path": data}
        config = config.model_copy(update={"data": config.data.model_copy(update={"options": options})})
    return config


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
        raise RepeatedKey(f"{twice} stands twice in one section; keep one")
    return values


def with_overrides(content: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a config's values with those of `section.key=value` put in their places, the last one of a key.

    Raises:
        ConfigError: One is not of this form, its value is not YAML, or its section is none.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set expects section.key=value, got {override!r}")
        try:
            value = load_yaml(text)
        except RepeatedKey as error:
            raise ConfigError(f"--set {key}: {error}") from None
        except (yaml.YAMLError, ValueError):
            raise ConfigError(f"--set {key}: {text!r} is not a YAML value") from None
        *parents, leaf = key.split(".")
        section = content
        for parent in parents:
            child = section.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(f"--set {key}: {parent} is a value, not a section")
            section = child
        section[leaf] = value
    return content


def settings_to_go_on(overrides: Sequence[str], *, workers: bool = False) -> tuple[Any, Any]:
    """Return the values of `rounds` and `resources.workers` among the settings for a run that goes on, None for none.

    Args:
        overrides: Each `section.key=value`.
        workers: Whether the second may be given.

    Raises:
        ConfigError: Another setting is among them: a run goes on with its own.
    """
    known = ["rounds", "resources.workers"] if workers else ["rounds"]
    others = [text for text in overrides if text.partition("=")[0] not in known]
    if others:
        more = " or with another number of processes (--set resources.workers=N)" if workers else ""
        raise ConfigError(
            f"a run goes on with its own config, to more rounds at most (--set rounds=N){more}: leave out --set "
            f"{others[0]}"
        )
    found = with_overrides({}, overrides)
    return found.get("rounds"), found.get("resources", {}).get("workers")


def mistakes_in(error: ValidationError, model: type[BaseModel] = ExperimentConfig) -> str:
    """Return one line for the errors that pydantic has found in the values of a model."""
    return "; ".join(_line(item, model) for item in error.errors())


def _line(error: Any, model: type[BaseModel]) -> str:
    """Return one line for one pydantic error: the key, what is wrong, what came."""
    location = [str(part) for part in error["loc"]]
    key = ".".join(location) or "config"
    if error["type"] == "extra_forbidden":
        allowed = _keys_of(location[:-1], model)
        where = ".".join(location[:-1]) or "the top level"
        return f"{key}: unknown key{did_you_mean(location[-1], allowed)}; {where} takes {', '.join(allowed)}"
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']}"
    if error["type"] == "model_type":
        return f"{key}: expected keys and values, got {error['input']!r}"
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}"


def _keys_of(location: Sequence[str], section: type[BaseModel]) -> list[str]:
    for part in location:
        if part not in section.model_fields:  # a key of what differs for single clients
            return list((ClientTraining if section is TrainingConfig else BudgetConfig).model_fields)
        annotation = section.model_fields[part].annotation
        section = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else section
    return list(section.model_fields)
