"""Plan of a benchmark: rows that differ in nothing but their method, each with every seed.

A row may change what belongs to a method (its facts, its learning rate and other coefficients, its codecs, its
selection) and nothing else: with other data, rounds or epochs its numbers would not be comparable, and the plan is
refused.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from spatl.bench.score import score_of
from spatl.config.bench import BenchConfig
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config, read_config
from spatl.errors import ConfigError, did_you_mean
from spatl.extensions.references import is_reference
from spatl.methods import METHODS
from spatl.wire.codecs import CODECS

REFERENCE: Final = "fedavg"
"""The row that costs are compared with."""
ALONE: Final = "local"
"""The row that shows which targets need a federation at all."""

_OF_A_METHOD: Final = (
    "method", "predictor", "selection", "agent", "control", "wire", "server_optimizer", "server.learning_rate",
    "training.learning_rate",
    "training.momentum", "training.nesterov", "training.weight_decay", "training.proximal_mu", "training.head_epochs",
    "training.finetune_epochs",
)  # fmt: skip

_OF_AN_OPTIMIZER: Final = ("learning_rate", "momentum", "nesterov", "weight_decay")


@dataclass(frozen=True)
class Row:
    """Row of the table: a method with its settings.

    Attributes:
        label: What it is called, once in a table.
        values: Its whole config as nested mappings, not yet checked.
    """

    label: str
    values: Mapping[str, Any]

    def config(self, seed: int, **sections: Mapping[str, Any] | Any) -> ExperimentConfig:
        """Return the config of one run: `sections` merged over the row's, and a data set's path made absolute."""
        return parse_config(merged(self.values, {"seed": seed, **sections})).located(Path.cwd())


@dataclass(frozen=True)
class Plan:
    """Rows, seeds and targets of a benchmark.

    Attributes:
        rows: In the order of the table.
        bench: Seeds, targets, the grid for tuning, and which rows lack an idea of another.
    """

    rows: tuple[Row, ...]
    bench: BenchConfig

    @property
    def first(self) -> ExperimentConfig:
        """Return the config of the first run, for the settings that all have in common."""
        return self.rows[0].config(self.bench.seeds[0])


def make_plan(
    paths: Sequence[str | Path],
    *,
    overrides: Sequence[str] = (),
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    targets: Sequence[float] | None = None,
) -> Plan:
    """Read the rows, seeds and targets of a benchmark from a config.

    Args:
        paths: One config, whose `bench.methods` are the rows; or several, each of them a row.
        overrides: `section.key=value`, applied to every config.
        methods: Labels of the rows to keep, or further rows: names of methods, or `method+codec` for a method with
            that codec in both directions. All rows of the config if not given.
        seeds: Instead of `bench.seeds`.
        targets: Instead of `bench.targets`.

    Raises:
        ConfigError: A config is wrong, a method or a label unknown, a grid empty, or rows differ in more than their
            method.
    """
    configs = [read_config(path, overrides) for path in paths]
    first = parse_config(configs[0])
    given = {"seeds": seeds, "targets": targets}
    values = merged(first.bench.model_dump(), {key: value for key, value in given.items() if value is not None})
    bench = parse_config({"bench": values}).bench
    if len(configs) > 1:
        rows = dict(zip(_labels(paths, configs), configs, strict=True))
    else:
        rows = {label: merged(configs[0], own) for label, own in _rows_of(first).items()}
    known = list(rows)
    if methods is not None:
        rows = {label: rows.get(label) or _named(label, rows, configs[0]) for label in _distinct(methods)}
    _check_labels(list(rows))
    plan = Plan(
        tuple(Row(label, {key: value for key, value in row.items() if key != "bench"}) for label, row in rows.items()),
        bench,
    )
    _check_comparable(plan)
    _check_targets(plan, given="targets" in first.bench.model_fields_set or targets is not None)
    _check_ablations(plan, known)
    return plan


def unequal_optimizers(plan: Plan) -> str | None:
    """Return a sentence that says how the rows' optimizers differ by their methods' own defaults; None if they do not.

    What a config gives a row itself was chosen, and what all rows have alike is fair. A default that came with one
    row's method alone is neither: its row may win by its optimizer.
    """
    trainings = {row.label: row.config(plan.bench.seeds[0]).training for row in plan.rows}
    chosen = {row.label: row.values.get("training") or {} for row in plan.rows}
    unequal = [
        key
        for key in _OF_AN_OPTIMIZER
        if len({getattr(training, key) for training in trainings.values()}) > 1
        and not all(key in each for each in chosen.values())
    ]
    if not unequal:
        return None
    rows_by_settings: dict[str, list[str]] = {}
    for label, training in trainings.items():
        settings = ", ".join(f"{key} {getattr(training, key):g}" for key in unequal)
        rows_by_settings.setdefault(settings, []).append(label)
    told = "; ".join(f"{settings}: {', '.join(labels)}" for settings, labels in rows_by_settings.items())
    return (
        f"the rows have unequal optimizers, by their methods' defaults ({told}), so that a ratio between them tells of "
        "those too; --tune chooses every row's alike, or give each row its own"
    )


def merged(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested mappings over others; a value replaces whatever was there."""
    result = dict(values)
    for key, value in more.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _rows_of(config: ExperimentConfig) -> dict[str, dict[str, Any]]:
    """Return each row's own settings, its method among them."""
    rows = {}
    for label, own in (config.bench.methods or {name: {} for name in METHODS}).items():
        method = own.get("method", label)
        if not isinstance(method, str) or (method not in METHODS and not is_reference(method)):
            raise ConfigError(_unknown(str(method), ()))
        rows[label] = {"method": label, **own}
    return rows


def _labels(paths: Sequence[str | Path], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Call each config by its method, or by its file where a method comes twice or is the user's own."""
    methods = [parse_config(values).method for values in configs]
    labels = [
        method if methods.count(method) == 1 and not is_reference(method) else Path(path).stem
        for path, method in zip(paths, methods, strict=True)
    ]
    return _distinct(labels)


def _distinct(labels: Sequence[str]) -> list[str]:
    if not labels:
        raise ConfigError("there is no method to compare; name at least one (--methods a,b,c)")
    label, number = Counter(labels).most_common(1)[0]
    if number > 1:
        raise ConfigError(f"{label!r} is named {number} times; every row needs a name of its own")
    return list(labels)


def _check_labels(labels: Sequence[str]) -> None:
    """Raise a `ConfigError` unless labels can be names of directories on every system: each row has one."""
    for label in labels:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", label):
            raise ConfigError(f"a row's label is made of letters, digits and . _ + -, and begins with one of the first "
                              f"two; got {label!r}")  # fmt: skip
    folded = Counter(label.casefold() for label in labels)
    if twice := [label for label in labels if folded[label.casefold()] > 1]:
        raise ConfigError(f"the labels {' and '.join(map(repr, twice))} differ in case only; rename all but one")


def _named(label: str, rows: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row that the config does not have: a method, or a row or method with a codec in both directions."""
    method, plus, codec = label.partition("+")
    if method not in rows and method not in METHODS:
        raise ConfigError(_unknown(label, rows))
    row = rows.get(method) or merged(config, {"method": method})
    if not plus:
        return dict(row)
    if codec not in CODECS:
        raise ConfigError(
            f"unknown codec {codec!r} in {label!r}{did_you_mean(codec, CODECS)}; known: {', '.join(CODECS)}; one of "
            "your own goes into a row of bench.methods (wire: {uplink: package.module:Codec})"
        )
    return merged(row, {"wire": {"uplink": codec, "downlink": codec}})


def _unknown(method: str, rows: Mapping[str, Any] | tuple[()]) -> str:
    known = dict.fromkeys([*rows, *METHODS])
    return (
        f"unknown method {method!r}{did_you_mean(method, known)}; known: {', '.join(known)}, or method+codec; one of "
        "your own goes into a row of bench.methods (method: package.module:ROW)"
    )


def _check_comparable(plan: Plan) -> None:
    """Raise a `ConfigError` unless the rows differ in nothing but what belongs to a method."""
    seed = plan.bench.seeds[0]
    first, *others = [(row.label, dict(_common(row.config(seed).model_dump(mode="json")))) for row in plan.rows]
    for label, values in others:
        for key in sorted(first[1].keys() | values.keys()):
            one, other = first[1].get(key), values.get(key)
            if one != other:
                raise ConfigError(
                    f"{label} differs from {first[0]} in {key} ({other} against {one}): rows may differ in their "
                    "method and its own settings only, or their numbers cannot be compared; set it for all"
                )


def _check_targets(plan: Plan, *, given: bool) -> None:
    """Raise a `ConfigError` unless the targets are values that the task's first metric can have.

    Args:
        plan: The plan.
        given: Whether somebody named them: those that hold otherwise are accuracies.
    """
    score = score_of(plan.first)
    if not score.is_share:
        if not given:
            raise ConfigError(
                f"bench.targets must be values of {score.metric}, by which this task is judged, and the usual ones "
                "are accuracies; set them in the config, or with --target"
            )
        return
    for target in plan.bench.targets:
        if not 0 < target <= 1:
            raise ConfigError(f"bench.targets: {score.metric} lies in (0, 1], got {target:g}")


def _check_ablations(plan: Plan, known: Sequence[str]) -> None:
    """Raise unless ablations name rows that differ from the full row; those of `known` may be left out by --methods."""
    ablations, rows = plan.bench.ablations, {row.label: row for row in plan.rows}
    if not ablations.without:
        return
    labels = dict.fromkeys([*known, *rows])
    for key, label in (("full", ablations.full), *(("without", label) for label in ablations.without)):
        if label not in labels:
            raise ConfigError(
                f"bench.ablations.{key}: there is no row {label!r}{did_you_mean(label, labels)}; rows: "
                f"{', '.join(labels)}"
            )
    present = {label: rows[label].config(plan.bench.seeds[0]) for label in (ablations.full, *ablations.without)
               if label in rows}  # fmt: skip
    for label, config in present.items():
        if label != ablations.full and config == present.get(ablations.full):
            raise ConfigError(
                f"bench.ablations.without: {label} is the same as {ablations.full} in every setting; take one away"
            )


def _common(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Return all settings that no method may change, by dotted name."""
    for name, value in values.items():
        key = f"{path}{name}"
        if key in _OF_A_METHOD:
            continue
        if isinstance(value, Mapping) and value:
            yield from _common(value, f"{key}.")
        else:
            yield key, value
