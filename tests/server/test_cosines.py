"""Cosines in a run's `clients.jsonl`: a client that turns its updates around shows there, and nowhere else."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict

import spatl.rounds.server
from server.replies import blob_content
from spatl.rounds.aggregation import Aggregator
from spatl.runs.records import read_lines
from spatl.wire.update import Update
from tests.support.federations import DENSE, blob_of, run_tiny, scaled, tampering, tiny_config, without_seconds


def rows_of(directory: Path) -> list[dict[str, Any]]:
    return read_lines(directory / "clients.jsonl")


@pytest.mark.slow
def test_a_client_that_turns_its_updates_around_points_against_the_others(tmp_path: Path) -> None:
    config = tiny_config(method="fedavg", wire=DENSE, training={"local_steps": 8})

    def turned(client: int, content: RecordDict) -> RecordDict:
        return blob_content(scaled(blob_of(content), -1.0)) if client == 3 else content

    run_tiny(config, tmp_path / "honest")
    run_tiny(config, tmp_path / "turned", app=tampering(turned))
    honest, other = (rows_of(tmp_path / each) for each in ("honest", "turned"))
    assert all(row["cosine"] > 0.3 for row in honest)
    assert all((row["cosine"] > 0) == (row["client"] != 3) for row in other)
    first = [next(row["cosine"] for row in rows if row["client"] == 3) for rows in (honest, other)]
    assert first[1] == pytest.approx(-first[0], abs=1e-4)  # in the first round, all others send what they did


@pytest.mark.parametrize(
    "sections",
    [
        {"selection": {"selector": "update", "keep_ratio": 0.4}},
        {"method": "fednova"},
        pytest.param({"method": "fedavg", "server": {"aggregation": "median"}}, marks=pytest.mark.slow),
        pytest.param({"method": "fedavg", "server": {"aggregation": "agreement"}}, marks=pytest.mark.slow),
        pytest.param({"method": "ssfl", "selection": {"keep_ratio": 0.5}}, marks=pytest.mark.slow),
    ],
    ids=["some channels", "normalised", "median", "agreement", "one mask"],
)
def test_they_change_no_other_number(sections: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run without them is the same to the bit: history, ledger, checkpoint and the other columns."""
    run_tiny(tiny_config(**sections), tmp_path / "with")
    with monkeypatch.context() as patch:
        patch.setattr(spatl.rounds.server, "sums_as_given", lambda aggregator: False)
        run_tiny(tiny_config(**sections), tmp_path / "without")
    for name in ("history", "ledger"):
        one, other = (without_seconds(read_lines(tmp_path / each / f"{name}.jsonl")) for each in ("with", "without"))
        assert one == other
    one, other = (without_seconds(rows_of(tmp_path / each)) for each in ("with", "without"))
    assert [row | {"cosine": None} for row in one] == other
    trained = [row for row in one if row["participated"]]
    assert all(-1 <= row["cosine"] <= 1 for row in trained)
    assert len({row["cosine"] for row in trained}) > len(trained) // 2
    assert (tmp_path / "with" / "server.checkpoint").read_bytes() == (
        tmp_path / "without" / "server.checkpoint"
    ).read_bytes()


class Shortened(Aggregator):
    """A rule of a user's that does not add up what it is given."""

    def add(self, update: Update, num_examples: int) -> None:
        super().add(update, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"privacy": {"noise_multiplier": 0.5, "clip": 1.0}, "training": {"batch_norm": "local"}},
        {"server": {"aggregation": "tests.server.test_cosines:Shortened"}},
        {"server": {"fraction_train": 0.2}},
    ],
    ids=["privacy", "a rule of the user's own", "one client a round"],
)
def test_where_there_is_none_it_is_null(sections: dict[str, Any], tmp_path: Path) -> None:
    run_tiny(tiny_config(method="fedavg", rounds=2, **sections), tmp_path)
    assert {row["cosine"] for row in rows_of(tmp_path)} == {None}


@pytest.mark.slow
def test_who_sends_nothing_that_is_used_has_none(tmp_path: Path) -> None:
    """A client whose update is refused, one that is not asked, and registration and the last evaluation."""

    def broken(client: int, content: RecordDict) -> RecordDict:
        return blob_content(b"") if client == 3 else content

    run_tiny(tiny_config(method="fedavg", server={"fraction_train": 0.8}), tmp_path, app=tampering(broken))
    for row in rows_of(tmp_path):
        assert (row["cosine"] is not None) == row["participated"]
