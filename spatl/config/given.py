"""Settings that a config was given, by their dotted names, as apart from those that have their defaults."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spatl.config.experiment import ExperimentConfig
from spatl.config.sections import Section


def given_settings(config: ExperimentConfig) -> set[str]:
    """Return the dotted names of the settings in which a config was told something.

    That is whatever differs from the method's own defaults, and whatever was named even if it does not; but not of a
    config that names all its sections: that one was written by a run, not by a person.
    """
    usual = ExperimentConfig.model_validate({"method": config.method})
    brought = {f"{section}.{key}" for section, values in config.row.defaults.items() for key in values}
    brought |= {"predictor.mode"} if config.row.predictor_mode else set()
    by_ratio = {"wire.uplink", "wire.downlink"} if config.wire.target_ratio is not None else set()
    resolved = config.model_fields_set >= set(ExperimentConfig.model_fields) - {"bench", "saliency"}
    given = set()
    for setting in setting_names():
        *sections, key = setting.split(".")
        section, usually = _at(config, sections), _at(usual, sections)
        named = key in section.model_fields_set and not resolved and setting not in brought
        differs = getattr(section, key) != getattr(usually, key)
        if (named or differs) and setting not in by_ratio:
            given.add(setting)
    return given


def given_in(values: Mapping[str, Any]) -> set[str]:
    """Return the dotted names of the settings that stand in nested mappings, as `read_config` returns them."""
    given = set()
    for setting in setting_names():
        found: Any = values
        for key in setting.split("."):
            found = found.get(key, _NOT_THERE) if isinstance(found, Mapping) else _NOT_THERE
        if found is not _NOT_THERE:
            given.add(setting)
    return given


def setting_names() -> tuple[str, ...]:
    """Return the dotted names of all settings of a run, in the order of the config; `bench` is no part of one."""
    return tuple(_names(ExperimentConfig))


def _names(section: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            if not field.exclude:
                yield from _names(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _at(config: ExperimentConfig, sections: Sequence[str]) -> Section:
    found: Section = config
    for name in sections:
        found = getattr(found, name)
    return found


_NOT_THERE = object()
