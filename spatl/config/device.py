"""Settings of a device's owner, `device.yaml`: what a run may ask of this device, whatever its server says.

The file lies in the device's own directory and never leaves it. Every setting has a safe value, so that a file that is
not there means the same as one as `spatl deploy init` writes it. An unknown key, a value of another kind and a file
that others may write are errors: a slip must not open what was meant to be closed.
"""

import os
import re
import textwrap
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from spatl.config.loading import mistakes_in, read_mapping
from spatl.config.sections import one_of
from spatl.config.selection import BudgetConfig
from spatl.config.settings import as_yaml, field_meanings
from spatl.errors import ConfigError
from spatl.extensions.references import is_reference
from spatl.methods import METHODS
from spatl.models.table import MODELS
from spatl.tasks.metrics import METRICS

DEVICE_FILE: Final = "device.yaml"
"""Name of the file, in the directory of a client."""
_WIDTH = 100
_OPENING = """\
What a run may ask of this device. This file is its owner's: it stays here, and nothing of the server's changes it.
A run that asks for more is refused before anything of it is done, with a line that names the setting and both values.
Each line holds its safe value; without this file, these values hold. A change counts from the next message on."""

Natural = Annotated[int, Field(ge=1)]
Above = Annotated[float, Field(gt=0)]


class OwnersSection(BaseModel):
    """Base of the sections of `device.yaml`: unknown keys and values of another kind are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class DataRules(OwnersSection):
    """Data that a run may train on, beside `digits` and `synthetic`, which are made here."""

    dir: str | None = None
    """Where this device's data lie, from this directory on; `--data-dir` goes before it. A run's own paths are never
    opened: without a place of the owner's, a data set that is read from disk is refused."""
    hub: bool | list[str] = False
    """Whether data may be fetched from the Hugging Face hub: true, or a list of names (cifar10, owner/name)."""


class LeavingRules(OwnersSection):
    """Parts of what is learnt here that may leave this device."""

    predictor: bool = True
    """The predictor, the last layers of the network. False: only runs in which it stays here (spatl-paper, fedper,
    fedrep, or predictor.mode local)."""
    cut: list[str] | None = None
    """Submodules of a listed network that are its predictor, whatever else a run's model.cut names: with `predictor:
    false` they stay here. Null leaves it to the run, which may then name a part that holds little; built-in networks
    are known."""
    statistics: Literal["nothing", "aggregated", "shared"] = "aggregated"
    """BatchNorm's statistics: nothing; aggregated, once, after the last round; shared, in every round."""
    whole_updates: bool = True
    """Updates of the whole encoder. False: only runs whose clients choose channels within a budget below 1."""
    saliency: bool = True
    """How much the loss depends on each channel, which methods with one mask for all (ssfl) ask for."""
    findings: bool = True
    """What the model does on the validation split, where a run asks for it (report.findings). False: this device takes
    part, and tells none, as with `--no-findings`."""
    metrics: Literal["all"] | list[str] = "all"
    """Metrics whose values, and sums over this device's test examples, it tells (`spatl show metrics`): all, or a list
    of names. Those of macro-f1, balanced-accuracy, auroc and average-precision say how often each class or label
    occurs, those of r2 the mean and the spread of the targets."""
    least_examples: Natural = 5
    """Fewest examples that anything said of them as a whole may be of, where this device has data of its own: training
    examples, whose mean and spread it tells when it registers (in each place of an image, where a run says so), and
    validation examples behind findings. A run divides the data, and may leave one to a split, whose mean it is."""
    least_noise: Above | None = None
    """Least privacy.noise_multiplier of a run; null demands none. The noise is the server's to add (docs/privacy.md):
    this refuses a run that does not say so, and cannot see whether it does."""

    @field_validator("metrics")
    @classmethod
    def _known(cls, names: str | list[str]) -> str | list[str]:
        known = {name: row for table in METRICS.values() for name, row in table.items()}
        for name in names if isinstance(names, list) else ():
            if not is_reference(name):
                one_of(name, known)
        return names


class CodeRules(OwnersSection):
    """Code that this device runs, beside the installed product."""

    trusted: dict[str, str] = Field(default_factory=dict)
    """Keys whose signature on an app bundle is believed, as Flower's trusted entities: {fpk_ID: ssh-ed25519 KEY}. With
    none, only the installed ClientApp runs, whatever a bundle holds. With some, Flower refuses every bundle that none
    of them has signed, and what they have signed runs as it is. Read when the client is started."""

    @field_validator("trusted")
    @classmethod
    def _keys(cls, trusted: dict[str, str]) -> dict[str, str]:
        for name, key in trusted.items():
            if not re.fullmatch(r"ssh-ed25519 [A-Za-z0-9+/=]+( .*)?", key):
                raise ValueError(f"{name}: expected a public key as ssh-ed25519 KEY, got {key!r:.60}")
        return trusted


class Limits(OwnersSection):
    """Bounds of what one round, or one day, may take of this device."""

    steps: Natural = 100_000
    """Steps of the optimizer in a round."""
    seconds: Above = 3600.0
    """Seconds that one message may be worked on; a round that takes longer is ended."""
    examples: Natural = 1_000_000
    """Training examples that a run may use or make here."""
    threads: Natural = 4
    """CPU threads (training.threads)."""
    memory_megabytes: Natural = 4000
    """Memory for the network, its copies, one batch and the data, in 10^6 bytes: by their sizes before any is built,
    and on Linux by the system where training is on the CPU."""
    upload_megabytes: Above = 500.0
    """Bytes sent in a round, in 10^6."""
    download_megabytes: Above = 500.0
    """Bytes received in a round, in 10^6."""
    rounds_a_day: Natural | None = None
    """Rounds of training in any 24 hours; further ones are refused until there is room. Null for any number."""
    hours: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$")] | None = None
    """When this device may work, by its clock: '22:00-06:00'. At other times a round is refused. Null for any time."""
    command: list[str] | None = None
    """A program and its arguments that says by its exit status whether to work now (0: yes), e.g. on mains or battery:
    [sh, -c, 'grep -q 1 /sys/class/power_supply/AC/online']. Null for always."""

    @field_validator("command")
    @classmethod
    def _program(cls, command: list[str] | None) -> list[str] | None:
        if command is not None and not command:
            raise ValueError("is empty; name a program, or give null")
        return command


class OwnersBudget(BudgetConfig):
    """Most that an update may cost, one of three; `--budget` goes before it. A run that cannot keep it is refused."""

    model_config = ConfigDict(strict=True)


class DeviceConfig(OwnersSection):
    """Content of `device.yaml`: what a run may ask of a device."""

    models: Literal["all"] | list[str] = "all"
    """Built-in networks that may be trained (`spatl show models`): all, or a list of names."""
    methods: Literal["all"] | list[str] = "all"
    """Built-in methods that may be run (`spatl show methods`): all, or a list of names."""
    files: dict[str, str] = Field(default_factory=dict)
    """Files of this directory that a run may name, each with its SHA-256 (`sha256sum FILE`): {my_net.py: '0123...'}.
    Python modules for what a config names as package.module:name (networks, selectors, codecs, methods, data sets,
    partitioners), and policies (agent.policy). Nothing else is imported for a run, and no installed module."""
    data: DataRules = DataRules()
    leaves: LeavingRules = LeavingRules()
    code: CodeRules = CodeRules()
    limits: Limits = Limits()
    budget: OwnersBudget = OwnersBudget()

    @field_validator("models", "methods")
    @classmethod
    def _known(cls, names: str | list[str], info: Any) -> str | list[str]:
        table: Collection[str] = MODELS if info.field_name == "models" else METHODS
        if isinstance(names, list):
            for name in names:
                one_of(name, table)
        return names

    @field_validator("files")
    @classmethod
    def _files(cls, files: dict[str, str]) -> dict[str, str]:
        for name, digest in files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or str(path) != name or not path.parts:
                raise ValueError(f"{name!r} must be a path from this directory on, without ..")
            if not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise ValueError(f"{name}: expected its SHA-256, 64 hexadecimal digits, got {digest!r:.80}")
        return files


def read_device(path: Path) -> DeviceConfig | None:
    """Read a device's file; None where there is none, so that the safe values hold.

    Raises:
        ConfigError: It cannot be read, is empty or not YAML, others may write it, or a key or value is not allowed.
    """
    try:
        mode = path.stat().st_mode
        values = read_mapping(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if os.name == "posix" and mode & 0o022:
        raise ConfigError(f"{path} can be written by other users of this machine (mode {mode & 0o777:o}): chmod 600")
    if not values:
        raise ConfigError(f"{path} is empty: put back what it said, or delete it for the safe values")
    try:
        return DeviceConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {mistakes_in(error, DeviceConfig)}") from None


def device_text() -> str:
    """Return the text of a `device.yaml` with safe values, and what each means as a comment."""
    return "\n".join([*_comment(_OPENING.replace("\n", " ")), *_lines(DeviceConfig), ""])


def _lines(model: type[BaseModel], indent: str = "") -> Iterator[str]:
    meanings = field_meanings(model)
    for name, info in model.model_fields.items():
        yield "" if not indent else indent.rstrip()
        section = info.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from _comment(" ".join((section.__doc__ or "").split()), indent)
            yield f"{indent}{name}:"
            yield from _lines(section, indent + "  ")
        else:
            yield from _comment(meanings[name], indent)
            yield f"{indent}{name}: {as_yaml(info.get_default(call_default_factory=True))}"


def _comment(text: str, indent: str = "") -> Iterator[str]:
    for line in textwrap.wrap(text, _WIDTH, break_on_hyphens=False, break_long_words=False):
        yield f"{indent}# {line}"
