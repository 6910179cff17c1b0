"""Methods of the user's own: rows given by reference, with defaults, run like ours."""

from pathlib import Path
from typing import Any

import pytest

from spatl.bench.plan import make_plan
from spatl.config.loading import config_from_json, parse_config
from spatl.config.unread import settings_without_effect
from spatl.console.main import main
from spatl.errors import ConfigError
from spatl.methods import METHODS, Method, find_method
from spatl.runs.records import read_lines
from tests.support.federations import history_without_seconds, run_tiny, tiny_config

USERS = "tests.support.users_parts:"


def test_a_row_brings_its_defaults_and_what_the_config_says_goes_first() -> None:
    config = parse_config({"method": f"{USERS}ROW"})
    assert config.row.title == "Half FedAvg"
    assert config.training.learning_rate == 0.03
    assert config.selection.selector == "update"
    assert config.predictor.mode == "shared"
    assert config.budget().limit == 0.5
    assert parse_config({"method": f"{USERS}ROW", "training": {"learning_rate": 0.2}}).training.learning_rate == 0.2
    assert config_from_json(config.to_json()) == config
    assert settings_without_effect(config) == {}
    assert [*settings_without_effect(parse_config({"method": f"{USERS}ROW", "control": {"damping": 1.0}}))] == [
        "control.damping"
    ]


@pytest.mark.slow
def test_a_row_of_the_same_facts_runs_as_ours_to_the_bit(tmp_path: Path) -> None:
    run_tiny(tiny_config(method="fedavg", rounds=2), tmp_path / "ours")
    run_tiny(tiny_config(method=f"{USERS}AS_FEDAVG", rounds=2), tmp_path / "users")
    users, ours = (history_without_seconds(tmp_path / name) for name in ("users", "ours"))
    digests = [
        one["uplink"].pop("other") - other["uplink"].pop("other") for one, other in zip(users, ours, strict=True)
    ]
    assert digests == [
        one.pop("uplink_bytes") - other.pop("uplink_bytes") for one, other in zip(users, ours, strict=True)
    ]
    assert digests[0] > 0  # of the row, by which clients register
    assert not digests[1]
    assert users == ours


@pytest.mark.slow
def test_a_row_of_ones_own_selects_within_its_budget(tmp_path: Path) -> None:
    run_tiny(tiny_config(method=f"{USERS}ROW", rounds=1), tmp_path)
    ratios = [row["keep_ratio"] for row in read_lines(tmp_path / "clients.jsonl") if row.get("keep_ratio")]
    assert ratios
    assert max(ratios) <= 0.5


@pytest.mark.parametrize(
    ("method", "line"),
    [
        (
            f"{USERS}A_NUMBER",
            r"method 'tests.*' must be a spatl\.methods\.Method, .*, got an object of type int \(confi",
        ),
        (f"{USERS}ROWS", r"has no 'ROWS' \(did you mean 'ROW'\?\)"),
        ("nowhere_at_all:ROW", "no module named 'nowhere_at_all'"),
        ("half:", 'a method of your own is written "package.module:ROW"'),
        (
            "fedavgg",
            r"^method: unknown name 'fedavgg' \(did you mean 'fedavg'\?\).*or \"package\.module:ROW\"",
        ),
        (f"{USERS}WRONG_DEFAULTS", r"training\.learning_rat: unknown key \(did you mean 'learning_rate'\?\)"),
    ],
)
def test_a_method_that_is_none_is_one_line(method: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        parse_config({"method": method})


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"shares": "some"}, "shares must be one of encoder, all, nothing, chosen, got 'some'"),
        ({"keep_ratio": 1.5}, r"keep_ratio must be in \(0, 1\], got 1\.5"),
        ({"selects": True, "static_mask": True}, "selects and static_mask exclude each other"),
        ({"shares": "nothing", "controls": True}, "what shares nothing has neither channels"),
        ({"head_first": True}, "head_first needs a private predictor"),
        ({"defaults": {"rounds": 3}}, "defaults must be settings by section, got {'rounds': 3}"),
    ],
)
def test_facts_that_exclude_each_other_are_one_line(facts: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=f"the method 'Mine': {line}"):
        Method(**{"title": "Mine", "source": "a test", "shares": "all", **facts})


def test_a_name_of_the_table_is_a_row_of_it() -> None:
    assert find_method("spatl") is METHODS["spatl"]
    with pytest.raises(
        ConfigError, match=r'unknown method .*or "package\.module:ROW" for your own \(configs: method\)'
    ):
        find_method("spatle")


def test_a_benchmark_takes_ones_own_under_a_label(tmp_path: Path) -> None:
    path = tmp_path / "bench.yaml"
    path.write_text(f"bench: {{methods: {{fedavg: {{}}, mine: {{method: '{USERS}ROW'}}}}}}\n")
    assert [row.label for row in make_plan([path]).rows] == ["fedavg", "mine"]
    own = tmp_path / "mine.yaml"
    own.write_text(f"method: '{USERS}ROW'\n")
    other = tmp_path / "other.yaml"
    other.write_text("method: fedavg\n")
    assert [row.label for row in make_plan([own, other]).rows] == ["mine", "fedavg"]


def test_a_run_has_a_directory_without_a_colon_and_check_names_the_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse_config({"method": f"{USERS}ROW"}).run_name == "tests.support.users_parts-ROW-1"
    path = tmp_path / "config.yaml"
    path.write_text(tiny_config(method=f"{USERS}ROW").to_yaml())
    assert main(["check", str(path)]) == 0
    assert f"{USERS}ROW: Half FedAvg (a test)" in " ".join(capsys.readouterr().out.split())
