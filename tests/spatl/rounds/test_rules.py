"""Aggregation rules: the table, and the user's own, which are rehearsed before a run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from spatl.config.loading import parse_config
from spatl.config.sections import AGGREGATIONS
from spatl.config.unread import settings_without_effect
from spatl.errors import ConfigError, SpatlError, from_outside
from spatl.rounds.rules import AGGREGATION_RULES, aggregation_rule
from spatl.runs.records import read_lines
from tests.support.federations import blueprint_of, fingerprints, history_without_seconds, run_tiny, tiny_config
from tests.support.layouts import interleaved_layout, make_update

USERS = "tests.support.users_parts:"


def config_of(rule: str, **sections: Any) -> Any:
    return tiny_config(server={"aggregation": f"{USERS}{rule}"}, **sections)


def test_a_config_names_the_rules_of_the_table() -> None:
    assert tuple(AGGREGATION_RULES) == AGGREGATIONS


def test_a_function_gets_all_updates_and_what_it_returns_is_what_entries_move_by() -> None:
    """Three clients, two channels of two entries; 1 and 2 send both, 3 the first: medians 2 and (1 + 5) / 2 below.

    torch's median of an even number is the lower of the two in the middle: 1 of 1 and 5. x moves at a rate of 0.5.
    """
    layout = interleaved_layout([(2, 2)])
    encoder = torch.zeros(layout.num_entries)
    aggregator = aggregation_rule(f"{USERS}middle").make(
        layout=layout, encoder=encoder, control=None, total_examples=60, learning_rate=0.5, trim_fraction=0.2
    )
    for values, mask in ((1.0, [True, True]), (5.0, [True, True]), (2.0, [True, False])):
        aggregator.add(make_update(layout, mask, torch.full((layout.num_entries,), values)), 20)
    moved = aggregator.encoder()
    assert moved[layout.owner == 0].tolist() == [1.0, 1.0]
    assert moved[layout.owner == 1].tolist() == [0.5, 0.5]
    assert encoder.tolist() == [0.0] * 4


def test_an_entry_that_nobody_sent_keeps_its_bits_and_a_round_without_updates_changes_nothing() -> None:
    layout = interleaved_layout([(2, 2)])
    encoder = torch.tensor([0.1, 0.2, 0.3, 0.4])
    made = {"layout": layout, "encoder": encoder, "control": None, "total_examples": 20, "trim_fraction": 0.2}
    aggregator = aggregation_rule(f"{USERS}middle").make(**made)
    assert torch.equal(aggregator.encoder(), encoder)
    aggregator.add(make_update(layout, [True, False], torch.ones(4)), 20)
    after = aggregator.encoder()
    assert torch.equal(after[layout.owner == 1], encoder[layout.owner == 1])
    assert torch.allclose(after[layout.owner == 0], encoder[layout.owner == 0] + 1)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spatl", "fednova"])
def test_a_mean_of_ones_own_learns_what_ours_does(tmp_path: Path, method: str) -> None:
    """Their encoders differ by rounding, at the first round by no more."""
    for name, rule in (("ours", "mean"), ("users", f"{USERS}like_the_mean")):
        run_tiny(tiny_config(method=method, rounds=1, server={"aggregation": rule}), tmp_path / name)
    ours, users = (read_lines(tmp_path / name / "history.jsonl")[-1] for name in ("ours", "users"))
    assert users["final_loss"] == pytest.approx(ours["final_loss"], rel=1e-4)
    assert users["rejected"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["middle", "Halfway"])
def test_a_run_repeats_to_the_bit_and_differs_from_the_mean(tmp_path: Path, rule: str) -> None:
    for name in ("one", "two"):
        run_tiny(config_of(rule, rounds=2), tmp_path / name)
    run_tiny(tiny_config(rounds=2), tmp_path / "mean")
    assert history_without_seconds(tmp_path / "one") == history_without_seconds(tmp_path / "two")
    assert fingerprints(tmp_path / "one") != fingerprints(tmp_path / "mean")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("a_mean_of_all", r"got \d+ of what clients sent as NaN or infinity; look at torch\.nanmean"),
        ("one_number", r"one real number for each entry \[\d+\], got float32 \[\]"),
        ("no_tensor", "one real number for each entry .*, got list"),
        ("stumbles", r"failed: IndexError: nobody is here \(users_parts\.py:\d+, in stumbles\)"),
        ("wants_ages", "needs 'ages', which nobody gives: it is called with updates, num_examples, trim_fraction"),
        ("OfDoubles", r"encoder\(\) must return finite float32 \[\d+\], got float64"),
        ("WithoutAnswer", r"encoder\(\) must return finite float32 \[\d+\], got NoneType"),
        ("InPlace", "must leave the encoder before the round as it is"),
        ("WithAges", "needs 'ages', which nobody gives"),
        ("A_NUMBER", r"must be a function of a round's updates, .*, got an object of type int"),
        ("Dataset", "got the class Dataset"),
        ("midle", r"has no 'midle' \(did you mean 'middle'\?\)"),
    ],
)  # fmt: skip
def test_a_rule_that_does_not_do_is_one_line_before_the_run(rule: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        blueprint_of(config_of(rule)).check_clients()
    assert f"aggregation rule '{USERS}{rule}'" in str(caught.value)


@pytest.mark.slow
def test_what_fails_in_a_round_ends_the_run_with_one_line_and_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(SpatlError, match=r"stumbles_later' failed: IndexError: too many \(users_parts") as caught:
        run_tiny(config_of("stumbles_later"), tmp_path)
    assert from_outside(caught.value)


def test_an_unknown_rule_is_told_with_the_closest_and_the_form() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'median'\?\); known: mean, .*\"package\.module:rule\""):
        parse_config({"server": {"aggregation": "medain"}})


def test_a_rule_of_ones_own_may_read_the_trim_fraction() -> None:
    config = parse_config({"server": {"aggregation": f"{USERS}middle", "trim_fraction": 0.1}})
    assert "server.trim_fraction" not in settings_without_effect(config)


def test_privacy_has_its_own_rule() -> None:
    sections = {"method": "fedavg", "privacy": {"noise_multiplier": 1.0}, "training": {"batch_norm": "local"}}
    with pytest.raises(ConfigError, match=r"leave server\.aggregation and server\.clip out"):
        parse_config({**sections, "server": {"aggregation": f"{USERS}middle"}})
