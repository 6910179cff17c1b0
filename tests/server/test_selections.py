"""Which channels clients chose, as a run writes it down."""

import pytest

from server.recorder import Recorder
from spatl.runs.records import read_lines
from tests.support.federations import blueprint_of, run_tiny, tiny_config

SELECTIONS = "selections.jsonl"


@pytest.mark.slow
def test_the_channels_of_each_group_add_up_to_the_keep_ratio_of_each_client(tmp_path):
    config = tiny_config(rounds=2, selection={"selector": "random"}, server={"fraction_train": 0.6})
    run_tiny(config, tmp_path)
    layout, rows = blueprint_of(config).layout, read_lines(tmp_path / SELECTIONS)
    entries = [group.entries_per_channel for group in layout.groups]
    found = {
        (row["round"], int(client)): sum(map(int.__mul__, counts, entries)) / layout.num_entries
        for row in rows
        for client, counts in row["kept"].items()
    }
    trained = [row for row in read_lines(tmp_path / "clients.jsonl") if row["participated"]]
    assert len(found) == 2 * 3
    assert found == pytest.approx({(row["round"], row["client"]): row["keep_ratio"] for row in trained})
    assert {tuple(row["groups"]) for row in rows} == {tuple(group.name for group in layout.groups)}
    assert {tuple(row["sizes"]) for row in rows} == {tuple(group.size for group in layout.groups)}


@pytest.mark.slow
def test_a_run_that_goes_on_drops_what_is_said_of_rounds_that_are_not_over(tmp_path):
    run_tiny(tiny_config(rounds=2, selection={"selector": "random"}), tmp_path)
    first, _ = read_lines(tmp_path / SELECTIONS)
    Recorder(tmp_path, done=1)
    assert read_lines(tmp_path / SELECTIONS) == [first]


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"method": "fedavg"},
        {"selection": {"selector": "all"}},
        {"selection": {"selector": "random"}, "method": "spatl-no-control",
         "privacy": {"clip": 1.0, "noise_multiplier": 0.5}},
    ],
    ids=["no selection", "all channels", "private"],
)  # fmt: skip
def test_where_clients_do_not_choose_or_it_is_a_secret_nothing_is_written(tmp_path, sections):
    run_tiny(tiny_config(rounds=1, **sections), tmp_path)
    assert not (tmp_path / SELECTIONS).exists()
