"""What was given and is not read is told, and what is told to be unread changes nothing."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from spatl.bench.plan import make_plan
from spatl.bench.run import unread_by_rows
from spatl.config.always_read import ALWAYS_READ
from spatl.config.given import given_settings, setting_names
from spatl.config.loading import load_config, parse_config
from spatl.config.unread import RULES, settings_without_effect
from spatl.data import Dataset
from spatl.methods import METHODS
from spatl.runner import run
from spatl.runs.records import read_lines
from tests.support.federations import blueprint_of, tiny_config

CONFIGS = sorted((Path(__file__).parents[3] / "configs").rglob("*.yaml"))


def nested(setting: str, value: object) -> dict[str, Any]:
    section, _, key = setting.partition(".")
    return {section: {key: value}}


def told(values: dict[str, Any], **options: Any) -> list[str]:
    return list(settings_without_effect(parse_config(values), **options).values())


def test_every_setting_is_either_always_read_or_has_a_rule() -> None:
    """A new setting belongs into `ALWAYS_READ`, or into `RULES` with when it is read and why not otherwise."""
    ruled = {setting for rule in RULES for setting in rule.settings}
    assert ruled | ALWAYS_READ == set(setting_names())
    assert not ruled & ALWAYS_READ


@pytest.mark.parametrize(
    ("method", "setting", "value", "line"),
    [
        ("fedavg", "training.proximal_mu", 0.5, "FedAvg has no proximal pull (methods that do: fedprox)"),
        ("fedavg", "training.proximal_mu", 0.01, "FedAvg has no proximal pull (methods that do: fedprox)"),
        ("fedavg", "training.head_epochs", 5, "FedAvg does not train the predictor first (methods that do: fedrep)"),
        ("fedavg", "training.finetune_epochs", 5, "FedAvg does not fine-tune (methods that do: fedavg-finetune)"),
        ("fedavg", "selection.keep_ratio", 0.4, "FedAvg sends every channel (methods that do: spatl"),
        ("spatl-no-selection", "selection.flops_ratio", 0.4, "SPATL without selection sends every channel"),
        ("fedavg", "selection.uplink_bytes", 5000, "FedAvg sends every channel"),
        ("fedavg", "selection.selector", "random", "FedAvg has clients that do not choose channels"),
        ("fedavg", "selection.clients", {0: {"keep_ratio": 0.5}}, "FedAvg sends every channel"),
        ("ssfl", "selection.clients", {0: {"keep_ratio": 0.5}}, "all clients send one set of channels"),
        ("ssfl", "agent.samples", 2, "clients of SSFL, by channels do not choose channels"),
        ("fedavg", "control.half_life", 3.0, "FedAvg has no control variates (methods that do: spatl"),
        ("fedavg", "predictor.mode", "local", "FedAvg always has its predictor shared"),
        ("fedavg", "predictor.strength", 0.5, "a predictor that is shared has no offset"),
        ("spatl", "predictor.shrinkage", 0.5, "the predictor is calibrated, not residual"),
        ("spatl", "model.cut", ["classifier"], "no part of the model is a client's own with a predictor that is calib"),
        ("local", "model.cut", ["classifier"], "under Training alone a client shares nothing"),
        ("local", "server.learning_rate", 0.5, "Training alone shares nothing (methods that do: all but local)"),
        ("local", "wire.target_ratio", 20, "Training alone shares nothing"),
        ("fedavg", "wire.downlink_steps", "fine", "the choice is for wire.downlink: adaptive without wire.target"),
        ("fedavg", "wire.rounding", "dither", "wire.uplink is float32, not adaptive, nor does it choose wire"),
        ("local", "report.compare_alone", True, "these clients train alone already"),
        ("spatl", "report.prototype_examples", 3, "there are no findings without report.findings"),
        ("spatl", "server.trim_fraction", 0.1, "server.aggregation is mean, none of trimmed-mean, multi-krum, nnm"),
        ("spatl", "server.patience", 3.0, "clients in one process neither connect nor are waited for"),
        ("spatl", "server.ask_again_after", 2.0, "no message of a simulation is lost on its way"),
        ("spatl", "server.give_up_seconds", 60.0, "clients of a simulation that have gone do not come back"),
        ("spatl", "privacy.clip", 0.5, "there is no privacy without privacy.noise_multiplier"),
        ("spatl", "resources.gpus_per_client", 0.5, "only engine ray shares out a machine's resources"),
        ("fedper", "report.global_accuracy", 5, "each client of FedPer has a predictor of its own, and the server no"),
        ("local", "report.global_accuracy", 5, "Training alone has no model of all clients"),
        ("spatl", "partition.labels_per_client", 2, "the partition dirichlet does not read it (labels do)"),
    ],
)  # fmt: skip
def test_a_setting_that_was_given_and_is_not_read_is_told(method: str, setting: str, value: object, line: str) -> None:
    """Also where it is what it would have been."""
    lines = told({"method": method, **nested(setting, value)})
    assert len(lines) == 1
    assert lines[0].startswith(f"{setting} has no effect: {line}")


@pytest.mark.parametrize(
    ("values", "setting"),
    [
        ({"partition": {"name": "iid", "alpha": 0.5}}, "partition.alpha"),
        ({"training": {"local_steps": 3, "local_epochs": 4}}, "training.local_epochs"),
        ({"method": "fedprox", "training": {"dynamic_alpha": 0.5}}, "training.dynamic_alpha"),
        ({"method": "feddyn", "control": {"damping": 0.5}}, "control.damping"),
        ({"method": "ditto", "report": {"best": True}}, "report.best"),
        ({"training": {"beta_1": 0.5}}, "training.beta_1"),
        ({"training": {"batch_norm": "shared", "calibration_examples": 9}}, "training.calibration_examples"),
        ({"method": "fedavg", "training": {"optimizer": "adam", "momentum": 0.5}}, "training.momentum"),
        ({"training": {"schedule": "cosine", "step_rounds": 5}}, "training.step_rounds"),
        ({"selection": {"selector": "all", "keep_ratio": 0.5}}, "selection.keep_ratio"),
        ({"wire": {"target_ratio": 40, "downlink_steps": "fine"}}, "wire.downlink_steps"),
        (
            {"wire": {"uplink": "float32", "downlink": "adaptive", "downlink_steps": "fine", "rounding": "dither"}},
            "wire.rounding",
        ),
        ({"selection": {"selector": "update"}, "agent": {"max_share": 0.5}}, "agent.max_share"),
        ({"agent": {"samples": 0, "tuning": "ppo"}}, "agent.tuning"),
        ({"predictor": {"strength": 0, "smoothing": 2.0}}, "predictor.smoothing"),
        (
            {
                "partition": {"num_clients": 2},
                "selection": {"keep_ratio": 0.5, "clients": {0: {"keep_ratio": 0.5}, 1: {"keep_ratio": 0.9}}},
            },
            "selection.keep_ratio",
        ),
        (
            {"method": "fedavg", "privacy": {"noise_multiplier": 1.0}, "server": {"norm_bound": 5.0}},
            "server.norm_bound",
        ),
    ],
)
def test_settings_that_other_settings_leave_unread_are_told(values: dict[str, Any], setting: str) -> None:
    assert list(settings_without_effect(parse_config(values))) == [setting]


@pytest.mark.parametrize("engine", ["inline", "ray", "deployment"])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_told_of_defaults_nor_of_what_a_method_brings_nor_of_a_config_that_a_run_wrote(
    method: str, engine: Any
) -> None:
    config = parse_config({"method": method})
    assert given_settings(config) <= {"method"}
    assert settings_without_effect(config, engine=engine) == {}
    again = parse_config(yaml.safe_load(config.to_yaml()))
    assert settings_without_effect(again, engine=engine) == {}
    changed = parse_config({**yaml.safe_load(config.to_yaml()), "partition": {"labels_per_client": 5}})
    assert list(settings_without_effect(changed)) == ["partition.labels_per_client"]


@pytest.mark.slow
def test_batch_norm_is_read_where_there_is_some() -> None:
    cnn, resnet = (
        tiny_config(training={"batch_norm": "shared"}, model={"name": name, "options": options})
        for name, options in (("cnn", {"channels": [4, 6], "hidden": 12}), ("resnet8", {"width": 0.25}))
    )
    assert [*settings_without_effect(cnn, model=blueprint_of(cnn).model)] == ["training.batch_norm"]
    assert [*settings_without_effect(resnet, model=blueprint_of(resnet).model)] == []


def test_the_share_of_a_split_that_the_data_came_with_is_not_read() -> None:
    config = parse_config({"data": {"test_fraction": 0.3, "validation_fraction": 0.1}})
    splits = torch.tensor([0, 0, 2])
    dataset = Dataset("tiny", torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 1]), num_classes=2, splits=splits)
    assert list(settings_without_effect(config, dataset=dataset).values()) == [
        "data.test_fraction has no effect: the data set came with a test split, which is kept"
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_hold_nothing_without_effect(path: Path) -> None:
    config = load_config(path)
    assert settings_without_effect(config, engine="deployment" if path.parent.name == "deploy" else None) == {}
    if config.bench.methods:
        assert unread_by_rows(make_plan([path])) == []


def test_a_benchmark_tells_of_what_no_row_reads(tmp_path: Path) -> None:
    values = {
        "training": {"proximal_mu": 0.1, "head_epochs": 3, "local_epochs": 1},
        "bench": {"methods": {"fedavg": {"selection": {"keep_ratio": 0.5}}, "fedprox": {}}},
    }
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(values))
    assert unread_by_rows(make_plan([tmp_path / "bench.yaml"])) == [
        "training.head_epochs has no effect: FedAvg does not train the predictor first (methods that do: fedrep)",
        "fedavg: selection.keep_ratio has no effect: FedAvg sends every channel (methods that do: spatl, "
        "spatl-no-control, spatl-no-transfer, spatl-paper, ssfl, spatl-small, heterofl, fjord, fedrolex, "
        "federated-dropout, fedavg-able)",
    ]


@pytest.mark.slow
def test_a_run_says_it_once_on_screen_and_once_in_its_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config(method="fedavg", rounds=1, training={"proximal_mu": 0.1})
    line = "training.proximal_mu has no effect: FedAvg has no proximal pull (methods that do: fedprox)"
    run(config, tmp_path / "run", pictures=False)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [line]
    logged = read_lines(tmp_path / "run" / "log.jsonl")
    assert [entry["message"] for entry in logged if entry["level"] == "warning"] == [line]
    assert logged[0]["message"] == line


OTHER: dict[str, Any] = {
    "partition.alpha": 7.0, "partition.labels_per_client": 5, "partition.path": "nowhere.json",
    "model.cut": ["classifier"],
    "predictor.mode": "local", "predictor.strength": 0.3, "predictor.smoothing": 9.0, "predictor.shrinkage": 0.7,
    "training.local_epochs": 9, "training.proximal_mu": 5.0, "training.head_epochs": 7, "training.finetune_epochs": 8,
    "training.momentum": 0.7, "training.nesterov": True, "training.beta_1": 0.3, "training.beta_2": 0.3,
    "training.epsilon": 0.1,
    "training.dynamic_alpha": 0.5, "training.personal_pull": 7.0, "training.contrast_weight": 9.0,
    "training.contrast_temperature": 0.1, "training.step_rounds": 1, "training.step_factor": 0.01,
    "training.batch_norm": "shared", "training.calibration_examples": 3,
    "selection.keep_ratio": 0.7, "selection.selector": "random",
    "selection.when": "before",
    "selection.clients": {0: {"keep_ratio": 0.6}}, "agent.reward": "pruned", "agent.samples": 1, "agent.tuning": "ppo",
    "agent.tuning_rounds": 1, "agent.max_share": 0.9, "agent.policy": "nowhere.json", "control.damping": 0.9,
    "control.half_life": 0.3, "control.catch_up": 3,
    "server.learning_rate": 0.2, "server.norm_bound": 0.001, "server.aggregation": "median",
    "server.trim_fraction": 0.4, "server.max_weight": 0.1, "server.clip": 0.01, "server.connect_timeout_seconds": 0.1,
    "server.round_timeout_seconds": 0.1, "server.patience": 0.1, "server.ask_again_after": 9.0,
    "server.give_up_seconds": 0.1, "server.stop_after": 1,
    "privacy.clip": 0.1, "privacy.delta": 0.1,
    "wire.uplink": "int4", "wire.downlink": "int4", "wire.rounding": "at-random",
    "wire.downlink_steps": "fine",
    "resources.cpus_per_client": 9, "resources.gpus_per_client": 2.0, "resources.ray_address": "10.0.0.1:6379",
    "server_optimizer.name": "adam", "server_optimizer.momentum": 0.2, "server_optimizer.beta_1": 0.2,
    "server_optimizer.beta_2": 0.2, "server_optimizer.tau": 0.2,
    "report.compare_alone": True, "report.best": True, "report.prototype_examples": 5,
    "report.test_data": "test.npz",
    "report.global_accuracy": 1, "data.official_test": "apart",
}  # fmt: skip
"""Another value of each setting that some runs do not read, as far as they go together."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "sections"),
    [
        ("fedavg", {}),
        ("local", {}),
        ("fedrep", {}),
        ("ssfl", {}),
        ("feddyn", {"training": {"optimizer": "adam", "schedule": "cosine"}}),
        ("ditto", {}),
        ("spatl-no-control", {"selection": {"selector": "update"}, "predictor": {"mode": "shared"}}),
        ("spatl", {"selection": {"selector": "all"}, "predictor": {"strength": 0}}),
    ],
)
def test_what_is_not_read_may_be_anything(method: str, sections: dict[str, Any], tmp_path: Path) -> None:
    """The rounds are the same, to the bit, with all unread settings changed at once."""
    config = tiny_config(method=method, rounds=2, **sections)
    unread = settings_without_effect(config, model=blueprint_of(config).model, given=setting_names())
    changed = yaml.safe_load(config.to_yaml())
    for setting in unread:
        if setting in OTHER:
            section, _, key = setting.partition(".")
            changed[section][key] = OTHER[setting]
    assert len(unread.keys() & OTHER.keys()) > 10
    assert {*unread} - {*OTHER} <= {
        "partition.min_examples", "selection.flops_ratio", "selection.uplink_bytes", "control.downlink",
        "privacy.noise_multiplier", "wire.target_ratio",
    }  # fmt: skip
    found = []
    for number, each in enumerate((config, parse_config(changed))):
        run(each, tmp_path / str(number), pictures=False)
        rows = [row for name in ("history.jsonl", "clients.jsonl") for row in read_lines(tmp_path / str(number) / name)]
        found.append([_computed(row, with_bytes=method != "local") for row in rows])
    assert found[0] == found[1]


def _computed(row: dict[str, Any], *, with_bytes: bool) -> dict[str, Any]:
    """What a run computed: no times, nor bytes where a codec of nothing differs by the length of its header."""
    left_out = ("seconds",) if with_bytes else ("seconds", "bytes", "link")
    return {key: value for key, value in row.items() if not any(part in key for part in left_out)}
