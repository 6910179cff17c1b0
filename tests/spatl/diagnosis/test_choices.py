"""Channels that were sent, by group and rounds."""

import pytest

from spatl.diagnosis.choices import read_choices
from spatl.runs.files import SELECTIONS
from spatl.runs.records import append_lines


def rows(number):
    """Client 0 sends all of `a` and a quarter of `b`; client 1 half of both, from round 3 on."""
    for server_round in range(1, number + 1):
        later = {"1": [1, 2]} if server_round > 2 else {}
        yield {"round": server_round, "groups": ["a", "b"], "sizes": [2, 4], "kept": {"0": [2, 1], **later}}


def test_shares_are_means_over_clients_and_rounds(tmp_path):
    append_lines(tmp_path / SELECTIONS, rows(4))
    found = read_choices(tmp_path)
    assert found.columns == ((1, 1), (2, 2), (3, 3), (4, 4))
    assert [(each.name, each.num_channels) for each in found.groups] == [("a", 2), ("b", 4)]
    assert found.groups[0].kept == (1.0, 1.0, 0.75, 0.75)
    assert found.groups[1].kept == (0.25, 0.25, 0.375, 0.375)
    assert found.num_clients == 2


def test_of_one_client_only_its_rounds_count(tmp_path):
    append_lines(tmp_path / SELECTIONS, rows(4))
    found = read_choices(tmp_path, client=1)
    assert found.columns == ((3, 3), (4, 4))
    assert found.groups[1].kept == (0.5, 0.5)
    assert read_choices(tmp_path, client=2) is None


@pytest.mark.parametrize("number", [1, 7, 8, 9, 30, 101])
def test_many_rounds_are_put_together_in_few_columns_that_have_every_round_once(tmp_path, number):
    append_lines(tmp_path / SELECTIONS, rows(number))
    columns = read_choices(tmp_path).columns
    assert len(columns) == min(8, number)
    assert [each for first, last in columns for each in range(first, last + 1)] == list(range(1, number + 1))


def test_without_a_record_there_is_nothing(tmp_path):
    assert read_choices(tmp_path) is None
