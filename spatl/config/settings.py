"""Settings, all that there are, read from the classes of `config`: key, default, allowed values and meaning.

The meaning is the string under the field, where it stands once; it is read from the source only when it is asked for.
"""

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from spatl.config.experiment import ExperimentConfig
from spatl.errors import ConfigError, did_you_mean
from spatl.methods import METHODS


@dataclass(frozen=True)
class Setting:
    """Setting of a config, with its default and its meaning.

    Attributes:
        key: As `--set` takes it: `training.learning_rate`.
        default: As one would write it in YAML.
        allowed: What it may be.
        meaning: In a sentence or more.
        of_methods: Defaults that go with methods instead, by the method's name.
    """

    key: str
    default: str
    allowed: str
    meaning: str
    of_methods: Mapping[str, str]

    @property
    def section(self) -> str:
        """Section that it stands in; empty for those of the run itself."""
        return self.key.rpartition(".")[0]


def setting_keys() -> list[str]:
    """Return the keys of all settings, in the order of the config's classes."""
    return [key for key, _, _ in _fields(ExperimentConfig)]


def section_meanings() -> dict[str, str]:
    """Return the meaning of each section, that of the run itself (under the empty name) first."""
    own = {name: _summary(part) for name, part in _sections(ExperimentConfig)}
    return {"": _summary(ExperimentConfig), **own}


@cache
def all_settings() -> tuple[Setting, ...]:
    """Return all settings, in the order of the config's classes."""
    found = []
    for key, owner, name in _fields(ExperimentConfig):
        info = owner.model_fields[name]
        own = {method: as_yaml(value) for method, value in _of_methods(key).items()}
        found.append(Setting(key, _default(info), _allowed(info), field_meanings(owner)[name], own))
    return tuple(found)


def find_settings(names: list[str]) -> list[Setting]:
    """Return the settings of some sections, or those of these keys or names; all for no names.

    Raises:
        ConfigError: There is none of a name.
    """
    settings = all_settings()
    if not names:
        return list(settings)
    chosen: list[Setting] = []
    for name in names:
        found = [s for s in settings if s.key == name or s.key.startswith(f"{name}.")]
        found = found or [s for s in settings if s.key.rpartition(".")[2] == name]
        if not found:
            known = [*filter(None, section_meanings()), *setting_keys()]
            known += [key.rpartition(".")[2] for key in setting_keys()]
            sections = ", ".join(dict.fromkeys(s.section for s in settings if s.section))
            raise ConfigError(f"no setting is called {name!r}{did_you_mean(name, known)}; sections: {sections}")
        chosen += [setting for setting in found if setting not in chosen]
    return chosen


def _sections(model: type[BaseModel], prefix: str = "") -> list[tuple[str, type[BaseModel]]]:
    found = []
    for name, info in model.model_fields.items():
        if (part := _section_class(info)) is not None:
            found += [(prefix + name, part), *_sections(part, f"{prefix}{name}.")]
    return found


def _fields(model: type[BaseModel], prefix: str = "") -> list[tuple[str, type[BaseModel], str]]:
    """Yield key, class and field name of every setting: those of the class itself, then those of its sections."""
    plain = [(prefix + name, model, name) for name, i in model.model_fields.items() if _section_class(i) is None]
    for name, info in model.model_fields.items():
        if (part := _section_class(info)) is not None:
            plain += _fields(part, f"{prefix}{name}.")
    return plain


def _section_class(info: FieldInfo) -> type[BaseModel] | None:
    annotation = info.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _summary(model: type[BaseModel]) -> str:
    return (inspect.getdoc(model) or "").partition("\n\n")[0].replace("\n", " ")


@cache
def field_meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return the strings under the fields of a class, and of those it inherits from."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if not issubclass(owner, BaseModel) or owner is BaseModel:
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                text = below.value if isinstance(below, ast.Expr) else None
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    found[field.target.id] = " ".join(text.value.split())
    return found


def _of_methods(key: str) -> dict[str, Any]:
    """Return the values that go with methods in place of the default, by method."""
    section, _, name = key.rpartition(".")
    found = {}
    for method, row in METHODS.items():
        if name in row.defaults.get(section, {}):
            found[method] = row.defaults[section][name]
        elif key == "predictor.mode" and row.predictor_mode is not None:
            found[method] = row.predictor_mode
    return found


def _default(info: FieldInfo) -> str:
    return as_yaml(info.get_default(call_default_factory=True))


def as_yaml(value: Any) -> str:
    """Write a value in YAML's flow style."""
    if isinstance(value, str):
        return value if value.replace("-", "").replace("_", "").isalnum() else "'" + value.replace("'", "''") + "'"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}" if value < 1e16 else repr(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(as_yaml, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {as_yaml(each)}" for key, each in value.items()) + "}"
    return str(value)


_KINDS: Mapping[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null",
}  # fmt: skip


def _allowed(info: FieldInfo) -> str:
    return _kind(info.annotation, info.metadata)


def _kind(annotation: Any, metadata: Any = ()) -> str:
    """Describe the values of a type in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(parts[0], [each for part in parts[1:] for each in getattr(part, "metadata", [part])])
    if origin is Literal:
        return "one of " + ", ".join(map(as_yaml, parts))
    if origin is Union or (origin is not None and origin.__name__ == "UnionType"):
        kinds = [_kind(part, () if part is type(None) else metadata) for part in parts]
        return " or ".join(sorted(kinds, key=lambda kind: kind != "null"))
    if origin in (tuple, list):
        return f"a list, each {_kind(parts[0])}" if parts else "a list"
    if origin is dict or annotation is dict:
        return "keys and values"
    return _KINDS.get(annotation, getattr(annotation, "__name__", str(annotation))) + _range(metadata)


def _range(metadata: Any) -> str:
    words = []
    for each in metadata:
        for bound, text in ((Gt, "above"), (Ge, "at least"), (Lt, "below"), (Le, "at most")):
            if isinstance(each, bound):
                words.append(f"{text} {getattr(each, bound.__name__.lower()):g}")
    return f", {' and '.join(words)}" if words else ""
