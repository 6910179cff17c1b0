"""Rounds in which nobody evaluates (`report.every`): the same training, and fewer numbers."""

import pytest

from spatl.console.main import main
from spatl.errors import ConfigError
from spatl.rounds import client_evaluation
from spatl.runner import run
from spatl.runs.records import read_lines
from tests.support.federations import COMPRESSED, tiny_config

ROUNDS, EVERY = 4, 3
CASES = {
    "spatl": {"method": "spatl", "wire": COMPRESSED},
    "fedavg, its clients by turns": {"method": "fedavg", "server": {"fraction_train": 0.6}},
    "moon, which compares with what arrived": {"method": "moon"},
    "statistics of all": {"method": "fedavg", "training": {"batch_norm": "shared"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_round_that_nobody_evaluates_trains_as_one_that_all_do(case, tmp_path, monkeypatch):
    """Of a network with BatchNorm, whose evaluation estimates its statistics anew: in round 3, and in the end."""
    truly, evaluations = client_evaluation.evaluate, []

    def counted(*arguments, **named):
        evaluations.append(arguments)
        return truly(*arguments, **named)

    monkeypatch.setattr(client_evaluation, "evaluate", counted)
    found, numbers = {}, {}
    for every in (1, EVERY):
        evaluations.clear()
        config = tiny_config(
            **{"rounds": ROUNDS, "model": {"name": "resnet8", "options": {"width": 0.25}}, **CASES[case]},
            report={"every": every},
        )
        run(config, tmp_path / str(every), pictures=False, progress=False, warn=False)
        found[every], numbers[every] = read_lines(tmp_path / str(every) / "history.jsonl"), len(evaluations)
    for number, (each, few) in enumerate(zip(*found.values(), strict=True), start=1):
        same = ("encoder_fingerprint", "participants", "train_loss", "final_accuracy", "final_loss")
        assert [few[key] for key in same] == [each[key] for key in same]
        told = ("accuracy", "accuracy_min", "loss")
        assert [few[key] for key in told] == [each[key] if number == EVERY else None for key in told]
    assert found[1][0]["accuracy"] is not None
    rows = read_lines(tmp_path / str(EVERY) / "clients.jsonl")
    assert {row["round"] for row in rows if row["accuracy"] is not None} == {EVERY}
    participants = found[1][0]["participants"]
    assert numbers[1] - numbers[EVERY] == (ROUNDS - 1) * participants


@pytest.mark.slow
def test_a_run_with_few_evaluations_is_drawn_watched_and_told_of(tmp_path, capsys):
    settings = ["rounds=4", "report.every=3", "partition.num_clients=3", "training.local_epochs=1"]
    command = [each for setting in settings for each in ("--set", setting)]
    assert main(["run", "quickstart", "--out", str(tmp_path / "run"), *command]) == 0
    assert (tmp_path / "run" / "report.html").exists()
    capsys.readouterr()
    assert main(["status", str(tmp_path / "run")]) == 0
    final = read_lines(tmp_path / "run" / "history.jsonl")[-1]["final_accuracy"]
    assert f"{100 * final:.1f}" in capsys.readouterr().out


def test_the_best_round_is_not_looked_for_among_rounds_that_nobody_evaluates():
    with pytest.raises(ConfigError, match=r"report\.every is 2, but report\.best goes by .* in every round"):
        tiny_config(report={"every": 2, "best": True})
    with pytest.raises(ConfigError, match=r"report\.every"):
        tiny_config(report={"every": 0})
    assert tiny_config(report={"every": 2, "best": True}, method="ditto").report.every == 2  # which has no best one
