"""Description of a model that leaves a run: how its network is made, and what its inputs and outputs mean.

It stands beside the weights as JSON, so that whoever has the two needs nothing of the run. A description may come from
another machine; it is checked before anything is built from it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Self

import torch
from torch import Tensor

from spatl.data.bounds import check_classes, check_scale, check_shape
from spatl.data.normalisation import Normalisation, num_scaled
from spatl.errors import DataError, SpatlError
from spatl.json_files import write_json
from spatl.tasks.targets import TASKS, TaskName
from spatl.tensors.inputs import Inputs, NamedInputs

FORMAT: Final = 1
DESCRIPTION: Final = "model.json"
"""Name of the file."""
STATISTICS: Final = ("aggregated", "shared", "client", "none")
"""Where BatchNorm statistics are from: all clients' data after the last round, an average over the rounds, the one
client's own data, or there are none."""
_LARGEST_FILE: Final = 1 << 24
_FORMULAS: Final = {
    "classification": ("class", "strength * log(classes * (n_c + smoothing) / (n + classes * smoothing))"),
    "multi-label": ("label", "strength * log((n_c + smoothing) / (n - n_c + smoothing))"),
}
"""By task what an offset is added to, and which it is, of n examples of which n_c have that class or label."""


@dataclass(frozen=True)
class Offset:
    """Offset that a client adds to the logit of each class: tau log((n_c + s) / (n + K s)) + tau log K.

    n_c of its n training examples are of class c, of which there are K (`spatl.training.calibration`).

    Attributes:
        strength: tau.
        smoothing: s.
    """

    strength: float
    smoothing: float


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """Description of a model.

    Attributes:
        factory: What makes the network: a row of `spatl show models`, or `package.module:name`.
        options: What it takes beside the shapes.
        seed: The seed its weights were drawn from, and everything else that is in no file.
        cut: The submodules that form the predictor.
        residual: Whether the predictor is a shared one plus a client's own.
        predictor: The predictor's mode (`predictor.mode`).
        class_names: The names of the outputs, in their order.
        input_shape: The sides of an example: of an image channels, height and width; none of several inputs.
        normalisation: What is done with values before the network sees them; None for nothing.
        offset: What each client adds to the logits; None for nothing.
        statistics: One of `STATISTICS`.
        lacks: Names of the tensors that are each client's own, and in its own file alone.
        method: The run's method.
        data: The name of its data set.
        round: The round after which the model was taken.
        client: Whose the model is; None for that of the federation.
        accuracy: Mean over the clients of their accuracy with it, on the split that the run reports; of one client its
            own; None where nobody knows.
        versions: Of the programs that made it.
        encoder: Digest of the encoder as the clients hold it (BLAKE2b-128, hexadecimal).
        sha256: Of the file of the weights, hexadecimal.
        num_tokens: Where the examples are tokens, how many there are; 0 for other numbers.
        named_inputs: Of several inputs, by name, the sides of each, and after them `int64` for whole numbers.
        export: What an export did to the network; empty for a network as it was trained.
        task: What the network is for.
        metric: What its accuracy is: that, or another task's score.
        target_scale: Of a regression, what makes values in the targets' own units of its outputs: each times a
            deviation and plus a mean; None for nothing.
    """

    factory: str
    options: Mapping[str, Any]
    seed: int
    cut: tuple[str, ...]
    residual: bool
    predictor: str
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    normalisation: Normalisation | None
    offset: Offset | None
    statistics: str
    lacks: tuple[str, ...]
    method: str
    data: str
    round: int
    client: int | None
    accuracy: float | None
    versions: Mapping[str, str]
    encoder: str
    sha256: str = ""
    num_tokens: int = 0
    named_inputs: Mapping[str, Any] = field(default_factory=dict)
    export: Mapping[str, Any] = field(default_factory=dict)
    task: TaskName = "classification"
    metric: str = "accuracy"
    target_scale: Normalisation | None = None

    def image_shape(self, *, what: str) -> tuple[int, int, int]:
        """Return channels, height and width of the images.

        Args:
            what: What works on images alone, for the message.

        Raises:
            SpatlError: Its examples are something else, or it is no classification.
        """
        check_classifies(self.task, what=what)
        if len(self.input_shape) != 3 or self.num_tokens:
            kind = "several inputs" if self.named_inputs else "tokens" if self.num_tokens else "numbers"
            sides = " x ".join(map(str, self.input_shape))
            raise SpatlError(
                f"{what} works on models of images; this one takes {kind}{' ' if sides else ''}{sides}: use it from "
                "Python, spatl.RunResult.model() and model/model.safetensors"
            )
        channels, height, width = self.input_shape
        return channels, height, width

    def example(self) -> Inputs:
        """Return an example of zeros, `[1, ...]`."""
        if self.named_inputs:
            return NamedInputs({name: _zeros(sides) for name, sides in self.named_inputs.items()})
        return _zeros([*self.input_shape, *(["int64"] if self.num_tokens else [])])

    def write(self, directory: Path) -> None:
        """Write it into the directory of a model."""
        content = {"format": FORMAT, **asdict(self)}
        if self.task == "classification" and self.metric == "accuracy":
            content = {key: value for key, value in content.items() if key not in ("task", "metric", "target_scale")}
        if self.metric != "accuracy":
            content |= {"accuracy": None, "score": self.accuracy}
        if self.offset is not None:
            kind, formula = _FORMULAS[self.task]
            content["offset"] = {f"added to the logit of {kind} c": formula, **asdict(self.offset)}
        write_json(directory / DESCRIPTION, content)

    @classmethod
    def of_json(cls, content: Any, *, where: str) -> Self:
        """Check and read what `write` wrote.

        Args:
            content: The object.
            where: The file, for messages.

        Raises:
            SpatlError: It is no description of this format.
        """
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, Mapping) else type(content).__name__
            raise SpatlError(f"{where} must be a model's description of format {FORMAT}, got {found!r:.40}")
        try:
            return cls(**_checked(content))
        except (KeyError, TypeError, ValueError, DataError) as error:
            raise SpatlError(f"{where} does not describe a model: {type(error).__name__}: {error}") from error

    def named(self, **changes: Any) -> Self:
        """Return the description with some fields changed."""
        return replace(self, **changes)


def check_classifies(task: str, *, what: str) -> None:
    """Raise where something is for classifications alone, and a run is none.

    Args:
        task: The run's.
        what: What is for them.

    Raises:
        SpatlError: It is another one.
    """
    if task != "classification":
        raise SpatlError(
            f"{what} is for classifications, and this is {task}: use its model from Python, "
            "spatl.read_run(DIRECTORY).model()"
        )


def read_description(directory: Path) -> ModelDescription:
    """Read the description of the model in a directory.

    Raises:
        SpatlError: There is none, or it is damaged.
    """
    path = directory / DESCRIPTION
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise SpatlError(f"{path} must have at most {_LARGEST_FILE:,} bytes, got {path.stat().st_size:,}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SpatlError(f"{directory} holds no model: {DESCRIPTION} is not there") from error
    except (OSError, ValueError, RecursionError) as error:
        raise SpatlError(f"cannot read {path}: {error}") from error
    return ModelDescription.of_json(content, where=str(path))


def _checked(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a description, each of its type."""
    values = {each.name: content[each.name] for each in fields(ModelDescription) if each.name in content}
    if values.get("accuracy") is None:
        values["accuracy"] = content.get("score")
    for name in ("factory", "predictor", "statistics", "method", "data", "encoder", "sha256"):
        _check(isinstance(values[name], str), name, values[name])
    for name in ("seed", "round"):
        _check(type(values[name]) is int, name, values[name])
    for name in ("cut", "class_names", "lacks"):
        _check(isinstance(values[name], list) and all(isinstance(each, str) for each in values[name]), name)
        values[name] = tuple(values[name])
    _check(values["client"] is None or (type(values["client"]) is int and values["client"] >= 0), "client")
    _check(values["statistics"] in STATISTICS, "statistics", values["statistics"])
    values.setdefault("num_tokens", 0)  # files of earlier versions
    values.setdefault("named_inputs", {})
    _check(values.setdefault("task", "classification") in TASKS, "task", values["task"])
    _check(isinstance(values.setdefault("metric", "accuracy"), str), "metric", values["metric"])
    for name in ("options", "versions", "export", "named_inputs"):
        _check(isinstance(values[name], dict), name)
    if not TASKS[values["task"]].by_place:  # whose tokens may be more than a model has classes
        check_classes(values["class_names"])
    if values.setdefault("target_scale", None) is not None:
        values["target_scale"] = _normalisation(values["target_scale"], (len(values["class_names"]),))
    for sides in values["named_inputs"].values():
        _check(isinstance(sides, list), "named_inputs", sides)
        check_shape(sides[: len(sides) - (sides[-1:] == ["int64"])])
    if not values["named_inputs"]:
        check_shape(values["input_shape"])
    values["input_shape"] = tuple(values["input_shape"])
    check_scale("none", values["num_tokens"])
    if values["normalisation"] is not None:
        values["normalisation"] = _normalisation(values["normalisation"], values["input_shape"])
    if values["offset"] is not None:
        values["offset"] = Offset(*(_finite(values["offset"][name]) for name in ("strength", "smoothing")))
    return values


def _normalisation(content: Mapping[str, Any], shape: Sequence[int]) -> Normalisation:
    means, deviations = (tuple(map(_finite, content[name])) for name in ("means", "deviations"))
    scale = content.get("scale", "channel")
    check_scale(scale, 0)
    _check(len(means) == len(deviations) == num_scaled(shape, scale) and all(deviations), "normalisation", content)
    return Normalisation(means, deviations, scale)


def _zeros(sides: Sequence[Any]) -> Tensor:
    """Return zeros `[1, ...]`: whole numbers where the sides end in `int64`."""
    if sides[-1:] == ["int64"]:
        return torch.zeros((1, *sides[:-1]), dtype=torch.int64)
    return torch.zeros((1, *sides))


def _finite(value: Any) -> float:
    _check(isinstance(value, int | float) and math.isfinite(value), "number", value)
    return float(value)


def _check(holds: bool, name: str, found: Any = "something else") -> None:
    if not holds:
        raise ValueError(f"{name} is {found!r:.60}")
