"""Data sets and partitioners of the user's own: what they are given, and what is checked of what they return."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spatl.config.loading import on_device, parse_config
from spatl.config.unread import settings_without_effect
from spatl.console.main import main
from spatl.data import load_dataset, partition
from spatl.errors import ConfigError, DataError, from_outside
from tests.support.federations import blueprint_of, history_without_seconds, run_tiny, tiny_config

USERS = "tests.support.users_parts:"
LABELS = torch.arange(120) % 4


def parts_of(name: str, **settings: Any) -> tuple[Tensor, ...]:
    given = {"num_clients": 4, "seed": 1, "alpha": 0.5, "labels_per_client": 2, "min_examples": 10, **settings}
    return partition(LABELS, name=f"{USERS}{name}", **given)


def test_images_and_labels_are_read_as_npz_reads_arrays(tmp_path: Path) -> None:
    images, labels = np.arange(60 * 64, dtype=np.uint8).reshape(60, 8, 8), np.arange(60) % 3 + 5
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    ours = load_dataset("npz", seed=1, options={"path": str(tmp_path / "a.npz")})
    users = load_dataset(f"{USERS}from_a_path", seed=1, options={"path": str(tmp_path / "a.npz")})
    assert users.inputs.equal(ours.inputs)
    assert users.targets.equal(ours.targets)
    assert users.class_names == ("5", "6", "7")
    assert users.name == f"{USERS}from_a_path"


def test_a_data_set_comes_as_it_was_made() -> None:
    dataset = load_dataset(f"{USERS}whole", seed=1)
    assert dataset.class_names == ("low", "high", "none")


def test_draws_from_global_generators_follow_the_seed_and_leave_no_trace() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = load_dataset(f"{USERS}stripes", seed=1)
    torch.rand(3), np.random.rand(3), random.random()
    after = torch.get_rng_state()
    assert load_dataset(f"{USERS}stripes", seed=1).inputs.equal(first.inputs)
    assert torch.get_rng_state().equal(after)
    assert not load_dataset(f"{USERS}stripes", seed=2).inputs.equal(first.inputs)
    torch.set_rng_state(before[0])
    random.setstate(before[2])


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("images_alone", {}, "a list or mapping of one of these for each client, got an array"),
        ("uneven", {}, r"labels must be whole numbers or texts \[200\], one per image, got int64 \[199\]"),
        ("stripes", {"slnt": 1.0}, r"has no option 'slnt' \(did you mean 'slant'\?\); it takes num_examples, slant"),
        ("stripes", {"seed": 1}, "'seed' is given by the run and cannot be an option"),
        ("from_a_path", {}, "needs 'path', which nobody gives: it is called with seed, or by data.options"),
        ("broken", {}, r"its loader failed: KeyError: 'pixels' \(users_parts\.py:\d+, in broken\)"),
        ("leaves", {}, r"its loader failed: SystemExit \(users_parts\.py:\d+, in leaves\)"),
        ("A_NUMBER", {}, "must be a function that returns a spatl.data.Dataset, .* got an object of type int"),
        ("strips", {}, r"has no 'strips' \(did you mean 'stripes'\?\)"),
    ],
)
def test_a_loader_that_does_not_fit_is_one_line(name: str, options: dict[str, Any], line: str) -> None:
    with pytest.raises(DataError, match=line):
        load_dataset(f"{USERS}{name}", seed=1, options=options)


def test_what_a_loader_raises_keeps_its_traceback_for_the_log() -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(f"{USERS}broken", seed=1)
    assert from_outside(caught.value)


def test_an_unknown_data_set_or_partitioner_says_how_ones_own_is_named() -> None:
    with pytest.raises(DataError, match=r'or "package\.module:load" for your own \(configs: data\.name\)'):
        load_dataset("digit", seed=1)
    with pytest.raises(ConfigError, match=r'partition\.name: .* or "package\.module:split" for your own'):
        parse_config({"partition": {"name": "by-turns"}})


def test_a_partitioner_gets_what_it_names_and_its_parts_are_the_clients() -> None:
    assert [part.tolist() for part in parts_of("by_turns")] == [list(range(c, 120, 4)) for c in range(4)]
    assert [part.tolist() for part in parts_of("by_label")] == [list(range(c, 120, 4)) for c in range(4)]


def test_the_order_within_a_part_does_not_matter_and_draws_follow_the_seed() -> None:
    first = parts_of("shuffled")
    np.random.rand(5)
    assert [part.tolist() for part in parts_of("shuffled")] == [part.tolist() for part in first]
    assert sorted(torch.cat(first).tolist()) == list(range(120))
    assert all(part.equal(part.sort().values) for part in first)
    assert [part.tolist() for part in parts_of("shuffled", seed=2)] != [part.tolist() for part in first]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("one_too_few", "must return one tensor of indices for each of 4 clients, got 3"),
        ("shared", "an example goes to one client at most, got example 0 for client 0 and for client 1"),
        ("doubled", "client 0 got example 0 twice"),
        ("beyond", r"indices must lie in \[0, 120\), client 3 got 129"),
        ("fractions", r"the indices of client 0 must be whole numbers \[n\], got float32 \[30\]"),
        ("small_first", "gives client 0 3 of at least 10 examples: lower num_clients or min_examples"),
        ("wants_more", "needs 'clients', which nobody gives: it is called with labels, alpha, labels_per_client"),
        ("fails_to_split", r"failed: IndexError: out of examples \(users_parts\.py:\d+, in fails_to_split\)"),
        ("leaves_early", r"failed: SystemExit: 0 \(users_parts\.py:\d+, in leaves_early\)"),
        ("A_NUMBER", "must be a function that returns one tensor of indices per client, got an object of type int"),
    ],
)
def test_a_partition_that_is_none_is_one_line(name: str, line: str) -> None:
    with pytest.raises(DataError, match=line) as caught:
        parts_of(name)
    assert f"{USERS}{name}" in str(caught.value)


def of_users(**sections: Any) -> Any:
    return tiny_config(
        data={"name": f"{USERS}stripes", "options": {"num_examples": 150}},
        partition={"name": f"{USERS}by_turns", "num_clients": 5},
        **sections,
    )


@pytest.mark.slow
def test_a_run_on_both_repeats_to_the_bit(tmp_path: Path) -> None:
    for name in ("one", "two"):
        run_tiny(of_users(rounds=2), tmp_path / name)
    assert history_without_seconds(tmp_path / "one") == history_without_seconds(tmp_path / "two")
    assert blueprint_of(of_users()).dataset.num_classes == 2


@pytest.mark.parametrize(("name", "unread"), [("by_turns", ["partition.alpha"]), ("by_label", [])])
def test_a_setting_that_a_partitioner_does_not_name_is_told_to_be_unread(name: str, unread: list[str]) -> None:
    config = tiny_config(partition={"name": f"{USERS}{name}", "alpha": 0.3, "min_examples": 5})
    blueprint = blueprint_of(config)
    assert [*settings_without_effect(config, dataset=blueprint.dataset)] == unread
    assert [*settings_without_effect(config)] == []  # nothing is imported to find out


@pytest.mark.slow
def test_check_and_the_picture_of_a_partition_name_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(of_users().to_yaml())
    monkeypatch.chdir(tmp_path)
    assert main(["check", str(path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{USERS}stripes: 150 examples of 1 x 8 x 8, 2 classes" in printed
    assert f"5, {USERS}by_turns: 30 examples each" in printed
    assert main(["partition", str(path)]) == 0
    assert [each.name for each in (tmp_path / "runs").iterdir()] == [
        "partition-tests.support.users_parts-stripes-tests.support.users_parts-by_turns-5-3.png"
    ]


def test_a_path_of_a_users_data_set_is_counted_from_where_the_run_starts_and_a_device_has_its_own(
    tmp_path: Path,
) -> None:
    config = parse_config({"data": {"name": f"{USERS}from_a_path", "options": {"path": "a.npz"}}})
    assert config.located(tmp_path).data.options["path"] == str(tmp_path / "a.npz")
    assert on_device(config, data="/data").data.options["path"] == "/data"
    assert config.shares_data_on_disk
    assert not parse_config({**config.model_dump(), "partition": {"name": "own"}}).shares_data_on_disk
