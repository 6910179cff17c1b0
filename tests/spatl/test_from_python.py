"""Running from Python: what `run` takes and what it shows."""

import pytest

from spatl import runner
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import load_config
from spatl.errors import ConfigError
from spatl.runner import as_config, run
from tests.support.federations import tiny_config
from tests.support.terminals import shown, terminal


def test_a_config_is_taken_as_such_as_a_mapping_or_as_a_path(tmp_path):
    config = ExperimentConfig(rounds=3)
    path = tmp_path / "three.yaml"
    path.write_text("rounds: 3\n")
    assert as_config(config) is config
    assert as_config({"rounds": 3}) == as_config(path) == as_config(str(path)) == config
    assert as_config("quickstart") == load_config("quickstart")


@pytest.mark.parametrize(("given", "kind"), [(3, "int: 3"), (None, "NoneType: None"), (["rounds"], "list: ")])
def test_anything_else_is_told_what_was_expected(given, kind, tmp_path):
    with pytest.raises(ConfigError, match=f"run expects a config: .*a mapping of settings .*got {kind}"):
        run(given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [{"ronds": 3}, "nowhere.yaml"])
def test_a_mistake_in_what_was_given_is_the_config_s_error(given, tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean 'rounds'|config file not found: nowhere"):
        run(given, tmp_path / "out")


@pytest.fixture
def quick(monkeypatch):
    """Runs that take no time: two rounds are written at once."""

    def engine(config, directory, *, resume):
        raise AssertionError("not reached")

    def run_all(config, directory, on_round, on_round_alone, **kwargs):
        row = {"accuracy": 0.5, "final_accuracy": None, "uplink_bytes": 10, "downlink_bytes": 10, "rejected": 0,
               "missing": 0, "skipped": False, "seconds": 1.0, "training_seconds": 1.0, "selection_seconds": 0.0,
               "decision_seconds": 0.0}  # fmt: skip
        for number in (1, 2):
            on_round({"round": number, **row})
        on_round_alone({"round": 1, **row})
        return "ended"

    monkeypatch.setattr(runner, "run_missing", run_all)
    return engine


def test_a_script_whose_output_goes_to_a_pipe_prints_nothing(quick, tmp_path, capfd):
    assert run(tiny_config(rounds=2), tmp_path / "out") == "ended"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "is_shown"),
    [({}, True), ({"progress": True}, True), ({"progress": False}, False), ({"on_round": "own"}, False),
     ({"on_round": "own", "progress": True}, True)],
)  # fmt: skip
def test_a_terminal_shows_the_run_unless_the_caller_does(quick, tmp_path, monkeypatch, arguments, is_shown):
    console = terminal(80)
    monkeypatch.setattr(runner, "watched_console", lambda: console)
    monkeypatch.setattr(runner, "Screen", lambda stderr: console)
    rounds = []
    if "on_round" in arguments:
        arguments = {**arguments, "on_round": lambda row: rounds.append(row["round"])}
    run(tiny_config(rounds=2), tmp_path / "out", **arguments)
    assert ("round 2/2  accuracy 50.0 %" in shown(console)) == is_shown
    assert rounds == ([1, 2] if "on_round" in arguments else [])
