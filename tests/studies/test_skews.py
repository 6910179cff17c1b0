"""Honest clients whose data are unusual are not refused by default (docs/robustness.md has what was measured)."""

import dataclasses

import pytest

from spatl.runs.records import read_lines
from tests.studies.skews import SITUATIONS, late, one_large, run_situation


def _shorter(situation, rounds):
    return dataclasses.replace(situation, settings={**situation.settings, "rounds": rounds})


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_the_owner_of_ten_times_the_images_of_each_other_takes_part_in_every_round(tmp_path, seed):
    """With the defaults it takes ten times the others' steps, with momentum; it was refused from the first round on."""
    situation = _shorter(one_large(900, 90, selection={"selector": "update"}), 6)
    summary, largest = run_situation(situation, tmp_path / "run", seed=seed)
    assert (summary["rejected"], summary["excluded_by_client"]) == (0, {})
    assert [row["participants"] for row in read_lines(tmp_path / "run" / "run" / "history.jsonl")] == [10] * 6
    assert largest < 3
    assert summary["clients"]["0"] > 0.85


@pytest.mark.slow
def test_a_client_that_joins_late_and_alone_has_two_classes_is_folded_in_and_learns_them(tmp_path):
    situation = _shorter(late(selection={"selector": "update"}), 25)
    summary, largest = run_situation(situation, tmp_path / "run", seed=1)
    assert (summary["rejected"], summary["missing"]) == (0, 14)
    assert largest < 5
    assert summary["clients"]["9"] > 0.8


@pytest.mark.slow
def test_one_client_that_still_learns_is_not_refused_where_all_others_have_nothing_left_to_learn(tmp_path):
    name = "fedrep, the same, ten epochs for the head"
    summary, largest = run_situation(_shorter(SITUATIONS[name], 8), tmp_path / "run", seed=1)
    assert summary["rejected"] == 0
    assert largest < 5
