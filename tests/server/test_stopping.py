"""A run ends by itself where its validation scores get no better, and one that goes on ends where it would have."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import server.best
from server.engines import run_inline
from spatl import run
from spatl.artifacts.description import read_description
from spatl.config.loading import parse_config
from spatl.config.unread import settings_without_effect
from spatl.errors import ConfigError
from spatl.rounds.best import Best, better_of, is_enough
from spatl.runner import resume
from spatl.runs.records import read_lines
from spatl.runs.status import read_status
from tests.support.federations import tiny_config

SCORES = {1: 0.2, 2: 0.5, 3: 0.5, 4: 0.4, 5: 0.3, 6: 0.9}


@pytest.fixture
def scores(monkeypatch):
    """The accuracy of the model after each round is what `SCORES` says."""
    seen = []
    better = server.best.better_of

    def told(best, accuracy, server_round, **options):
        seen.append(server_round)
        return better(best, SCORES.get(server_round, accuracy), server_round, **options)

    monkeypatch.setattr(server.best, "better_of", told)
    return seen


def config_of(**server):
    return tiny_config(
        method="fedavg", rounds=8, training={"local_steps": 1}, report={"best": True}, server=server,
        partition={"num_clients": 3},
    )  # fmt: skip


def left_behind(directory: Path) -> tuple[str, list[str]]:
    rounds = [row["encoder_fingerprint"] for row in read_lines(directory / "history.jsonl")]
    summary = json.loads((directory / "summary.json").read_text())
    return json.dumps([summary["ended_early"], summary["clients"], summary["rounds"]]), rounds


@pytest.mark.slow
def test_a_run_ends_once_so_many_rounds_brought_nothing_better(tmp_path, scores, caplog):
    """Best is round 2, as the third was only as good; after three more, told in the fifth's replies, it is over."""
    run_inline(config_of(stop_after=2), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert scores == [0, 1, 2, 3, 4]
    assert summary["rounds"] == len(read_lines(tmp_path / "history.jsonl")) == 5
    assert summary["ended_early"] == {"best_round": 2, "best_accuracy": 0.5}
    assert summary["accuracy"] is not None
    assert len(summary["clients"]) == 3
    assert read_lines(tmp_path / "history.jsonl")[-1]["final_accuracy"] == summary["accuracy"]
    assert read_description(tmp_path / "model").round == 5
    assert "ended after round 5 of 8: none since round 2 was better" in caplog.text


@pytest.mark.slow
def test_the_status_of_such_a_run_says_why_it_has_fewer_rounds(tmp_path, scores):
    run_inline(config_of(stop_after=2), tmp_path)
    status = read_status(tmp_path)
    assert (status.state, status.round, status.rounds, status.seconds_left) == ("finished", 5, 5, 0)
    assert status.message == "no round since 2 was better (server.stop_after)"


@pytest.mark.slow
def test_a_run_that_gets_better_ends_with_its_rounds(tmp_path, scores):
    run_inline(config_of(stop_after=4), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["rounds"], "ended_early" in summary) == (8, False)


@pytest.mark.slow
@pytest.mark.parametrize("killed_in", [3, 5, 6])
def test_one_that_is_killed_ends_where_it_would_have(tmp_path, scores, monkeypatch, killed_in):
    """Also killed when the last round was on disk, and the summary was not."""
    run_inline(config_of(stop_after=2), tmp_path / "whole")

    class Killed(BaseException):
        pass

    def stop(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        if killed_in == 6:
            patch.setattr("server.app.write_federation_model", stop)
        else:
            asked = server.strategy.open_round
            patch.setattr(
                "server.strategy.open_round", lambda f, s, n, c: stop() if n == killed_in else asked(f, s, n, c)
            )
        with pytest.raises(Killed):
            run_inline(config_of(stop_after=2), tmp_path / "killed")
    run_inline(config_of(stop_after=2), tmp_path / "killed", resume=True)
    assert left_behind(tmp_path / "killed") == left_behind(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_that_ended_so_has_no_more_rounds_in_one_clear_line(tmp_path, scores):
    run(config_of(stop_after=2), tmp_path / "run", pictures=False, progress=False)
    with pytest.raises(ConfigError, match=r"ended after round 5, because none since round 2 was better .*stop_after"):
        resume(tmp_path / "run", rounds=20, pictures=False, progress=False)
    assert (tmp_path / "run" / "summary.json").exists()


def test_it_needs_scores_and_is_not_read_where_there_can_be_none():
    with pytest.raises(ConfigError, match=r"server\.stop_after goes by .* report\.best: true"):
        parse_config({"server": {"stop_after": 3}})
    alone = parse_config({"method": "ditto", "server": {"stop_after": 3}})
    assert list(settings_without_effect(alone)) == ["server.stop_after"]


@given(accuracies=st.lists(st.sampled_from([None, 0.1, 0.2, 0.3]), max_size=12), stop_after=st.integers(1, 4))
def test_the_last_round_is_the_first_with_so_many_behind_the_best(accuracies, stop_after):
    """Against what one would write down: the first place of the highest, and how far the end is from it."""
    best = None
    for server_round, accuracy in enumerate(accuracies):
        best = better_of(best, accuracy, server_round)
        told = list(enumerate(accuracies))[1 : server_round + 1]
        known = [(each, -number) for number, each in told if each is not None]
        expected = Best(max(known)[0], -max(known)[1]) if known else None
        assert best == expected
        over = expected is not None and server_round - expected.server_round >= stop_after
        assert is_enough(best, server_round + 1, stop_after) == over
        assert not is_enough(best, server_round + 1, None)


def test_a_device_is_evaluated_early_only_where_the_run_may_have_ended():
    """After round 4 at the earliest of stop_after 2: round 1 is the best, 2 and 3 are not, and 4 tells so."""
    config = config_of(stop_after=2)
    assert [config.may_be_last(number) for number in range(1, 10)] == [False] * 3 + [True] * 5 + [False]
    assert [config_of().may_be_last(number) for number in range(1, 10)] == [False] * 7 + [True, False]
