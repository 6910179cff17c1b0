"""The study of attacks: its parts, and what the rules do to bad clients among ten (docs/robustness.md)."""

import math

import numpy as np
import pytest
import torch

from spatl.seeding import generator
from tests.studies.attacks.__main__ import RULES, cell, keep, read, sums, table
from tests.studies.attacks.arena import Result, result_of
from tests.studies.attacks.situations import NUM_CLIENTS, SITUATIONS, bad_clients, write_shares
from tests.studies.attacks.ways import ATTACKS, Scene
from tests.support.updates import LAYOUT, random_updates


def scene(seed=1):
    updates = dict(enumerate(update for update, _ in random_updates(seed, 10)))
    own = {client: updates.pop(client) for client in (0, 1)}
    return Scene(0.9, 10, LAYOUT, honest=updates, own=own, draws=generator(seed, "attack"))


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in ("none", "label flip", "backdoor")])
def test_an_attack_replaces_the_updates_of_those_that_cheat_by_finite_ones_that_fit(name):
    found = scene()
    sent = ATTACKS[name].way(found)
    assert sent.keys() == {0, 1}
    for client, update in sent.items():
        assert bool(update.values.isfinite().all())
        assert len(update.values) == update.selection.num_entries(LAYOUT)
        assert name == "statistics" or not torch.equal(update.values, found.own[client].values)


def test_the_farthest_attacks_are_as_far_as_they_may_be():
    """No honest update is farther from min-max's than the farthest honest two are apart, and not much nearer."""
    found = scene()
    honest = found.all_honest
    among = torch.cdist(honest, honest)
    away = (honest - found.dense(ATTACKS["min-max"].way(found)[0])).norm(dim=1)
    assert 0.9 * float(among.max()) < float(away.max()) <= float(among.max()) * (1 + 1e-6)
    away = (honest - found.dense(ATTACKS["min-sum"].way(found)[0])).norm(dim=1)
    assert float(away.square().sum()) <= float(among.square().sum(1).max()) * (1 + 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_situation_gives_every_client_something_and_poison_touches_the_bad_alone(situation, tmp_path):
    bad = bad_clients(1)
    for poison in ("", "labels", "backdoor"):
        write_shares(tmp_path / f"{poison}.npz", SITUATIONS[situation], seed=1, bad=bad, poison=poison)
    clean = np.load(tmp_path / ".npz")
    assert set(clean["groups"]) == set(range(NUM_CLIENTS))
    for poison in ("labels", "backdoor"):
        poisoned = np.load(tmp_path / f"{poison}.npz")
        changed = (poisoned["labels"] != clean["labels"]) | (poisoned["images"] != clean["images"]).any((1, 2, 3))
        assert set(clean["groups"][changed]) == set(bad)


def test_a_run_that_was_kept_is_read_again_and_stands_in_the_table(tmp_path):
    path, run = tmp_path / "runs.jsonl", ("iid", "none", "mean", 1, 12)
    result = Result(0.9, 0.8, 0.5, {"bad": 3, "honest": 0}, {"bad": 6, "honest": 24})
    keep(path, run, result)
    keep(path, (*run[:3], 2, 12), Result())
    found = read(path)
    assert found[run] == result
    assert math.isnan(found[*run[:3], 2, 12].accuracy)
    lines = list(table(found, "iid", ["mean"]))
    assert lines[2:] == ["| none | 90.0 (90.0 to 90.0), 1 diverged, backdoor 50, refused 50 % |"]
    assert cell([]) == ""
    assert cell([Result()]) == "1 diverged"


@pytest.mark.slow
def test_a_sign_that_is_flipped_is_refused_by_agreement_and_nobody_else_is():
    """The study's own federation, a little shorter: the mean loses points, agreement does not."""
    results = {
        (rule, attack): result_of("Dirichlet 0.3", RULES[rule], attack, seed=1, rounds=8)
        for rule in ("mean", "agreement, clip 1.5") for attack in ("none", "sign flip")
    }  # fmt: skip
    guarded = results["agreement, clip 1.5", "sign flip"]
    assert guarded.accuracy > results["agreement, clip 1.5", "none"].accuracy - 0.03
    assert guarded.accuracy > results["mean", "sign flip"].accuracy
    assert guarded.refused["bad"] > 0
    assert guarded.refused["honest"] == 0


@pytest.mark.slow
def test_a_backdoor_within_the_norm_passes_the_mean_and_not_the_geometric_median():
    mean, guarded = (
        result_of("Dirichlet 0.3", RULES[rule], "backdoor", seed=1, rounds=12) for rule in ("mean", "geometric-median")
    )
    assert mean.backdoor > 0.2
    assert guarded.backdoor < 0.1


def test_what_a_rule_costs_and_buys_is_told_beside_the_first_one_seed_by_seed():
    """Seeds 1 and 2 at 90 and 80 %: the other rule is at 89 and 80, in the mean half a point below, and loses 1 and 20
    to a flip; a run of a third seed has nothing to be compared with.
    """
    nothing = {"bad": 0, "honest": 0}
    found = {
        ("iid", attack, rule, seed, 12): Result(accuracy, 0.0, backdoor, {"bad": 0, "honest": refused}, nothing)
        for attack, rule, seed, accuracy, backdoor, refused in (
            ("none", "mean", 1, 0.9, 0.0, 0), ("none", "mean", 2, 0.8, 0.0, 0),
            ("sign flip", "mean", 2, math.nan, 0.0, 9), ("none", "nnm", 1, 0.89, 0.0, 2),
            ("none", "nnm", 2, 0.8, 0.0, 1), ("none", "nnm", 3, 0.1, 0.0, 0), ("sign flip", "nnm", 1, 0.89, 0.0, 0),
            ("sign flip", "nnm", 2, 0.6, 0.0, 0), ("backdoor", "nnm", 1, 0.95, 0.31, 0),
        )
    }  # fmt: skip
    head, _, *lines = sums(found, "iid", ["mean", "nnm", "median"])
    assert head.startswith("| iid | nobody cheats |")
    assert lines == [
        "| mean | +0.0 | 0 | sign flip diverged | diverged | 0 % |",
        "| nnm | -0.5 | 3 | sign flip -10.5, backdoor +5.0 | -20.0 | 31 % |",
    ]
    assert list(sums(found, "sizes 1:100", ["mean"])) == []
