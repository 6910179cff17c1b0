"""Selectors of the user's own: found by reference, asked as ours are, and their answers checked before they travel."""

from pathlib import Path
from typing import Any

import pytest

from spatl.console.main import main
from spatl.errors import BudgetError, ConfigError, SpatlError, from_outside
from spatl.rounds.blueprint import make_blueprint
from spatl.runs.records import read_lines
from tests.support.federations import history_without_seconds, run_tiny, state_of, tiny_config

USERS = "tests.support.users_parts:"


def config_of(selector: str, **sections: Any) -> Any:
    return tiny_config(selection={"selector": f"{USERS}{selector}", "keep_ratio": 0.5}, **sections)


@pytest.mark.slow
def test_the_worth_of_each_channel_is_cut_to_the_budget_and_the_same_run_comes_out_twice(tmp_path: Path) -> None:
    for name in ("one", "two"):
        run_tiny(config_of("by_norm", rounds=2), tmp_path / name)
    rows = [row for row in read_lines(tmp_path / "one" / "clients.jsonl") if row.get("keep_ratio") is not None]
    assert rows
    assert all(0.3 < row["keep_ratio"] <= 0.5 for row in rows)
    assert history_without_seconds(tmp_path / "one") == history_without_seconds(tmp_path / "two")


@pytest.mark.slow
def test_a_class_is_made_once_and_what_it_remembers_is_a_clients_own(tmp_path: Path) -> None:
    """Five clients in three rounds: asked 15 times in all, of which each client's state counts its three."""
    run_tiny(config_of("Counting"), tmp_path)
    for client in range(5):
        state = state_of(tmp_path, client)
        assert state.selector["asked"].tolist() == [3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("selector", "error", "line"),
    [
        ("everything", BudgetError, r"chose channels that cost 1\.0000 where keep_ratio is 0\.5; cut them"),
        ("nothing", ConfigError, "must keep a channel of every group, got none of channels 0 to 3"),
        ("closed", ConfigError, "must not be closed"),
        ("too_short", ConfigError, r"one finite number per channel \[\d+\], got \[3\]"),
        ("not_a_number", ConfigError, "got one with NaN or infinity"),
        ("a_list", ConfigError, "must return a Choice, or a tensor with the worth of each channel .*, got list"),
        ("numbers_as_mask", ConfigError, r"mask must be bool \[\d+\], got torch\.float32"),
        ("odd_state", ConfigError, "state must be tensors by name, got {'asked': 3}"),
        ("changes_the_model", ConfigError, "must leave the model as it found it, but 'conv1.weight' has changed"),
        ("Demanding", ConfigError, "cannot be made without arguments: TypeError"),
        ("NotCallable", ConfigError, "must be callable; give it a method __call__"),
        ("A_NUMBER", ConfigError, r"must be a function of a SelectionRequest, .*, got an object of type int"),
        ("by_nrom", ConfigError, r"has no 'by_nrom' \(did you mean 'by_norm'\?\)"),
    ],
)  # fmt: skip
def test_an_answer_that_does_not_fit_is_one_line_before_the_run(
    selector: str, error: type[SpatlError], line: str
) -> None:
    with pytest.raises(error, match=line) as caught:
        make_blueprint(config_of(selector)).check_clients()
    assert f"selector '{USERS}{selector}'" in str(caught.value)


def test_what_a_selector_raises_is_told_with_its_place_before_the_run() -> None:
    told = r"divides' failed: ZeroDivisionError: .* \(users_parts\.py:\d+, in divides\)$"
    with pytest.raises(ConfigError, match=told) as caught:
        make_blueprint(config_of("divides")).check_clients()
    assert from_outside(caught.value)


def test_a_selector_is_not_imported_where_nobody_selects() -> None:
    """The server of a deployment does not, nor does a method that sends everything."""
    config = tiny_config(method="fedavg", selection={"selector": "nowhere_at_all:select"})
    make_blueprint(config).check_clients()
    make_blueprint(tiny_config(selection={"selector": "nowhere_at_all:select"}))


@pytest.mark.slow
def test_a_budget_of_bytes_is_met_by_worth_too(tmp_path: Path) -> None:
    config = tiny_config(selection={"selector": f"{USERS}by_norm", "uplink_bytes": 2500}, rounds=1)
    run_tiny(config, tmp_path)
    sent = [row["values"] + row["indices"] for row in read_lines(tmp_path / "ledger.jsonl")
            if row["phase"] == "train" and row["direction"] == "uplink"]  # fmt: skip
    assert sent
    assert max(sent) <= 2500


def test_check_says_who_chooses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config_of("by_norm").to_yaml())
    assert main(["check", str(path)]) == 0
    assert f"chosen by {USERS}by_norm" in " ".join(capsys.readouterr().out.split())
