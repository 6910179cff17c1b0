"""Rows of a run, as they are read."""

import math
import re

import pytest

from spatl.json_files import read_json, to_json, write_json
from spatl.runs.following import Tail
from spatl.runs.records import append_lines, excluded_line, keep_rounds, latest_accuracy, read_lines


@pytest.mark.parametrize(
    ("row", "accuracy"),
    [
        ({"accuracy": 0.5, "final_accuracy": None}, 0.5),
        ({"accuracy": 0.5, "final_accuracy": 0.25}, 0.25),
        ({"accuracy": 0.5, "final_accuracy": 0.0}, 0.0),
        ({"accuracy": 0.0, "final_accuracy": None}, 0.0),
        ({"accuracy": None, "final_accuracy": 0.0}, 0.0),
        ({"accuracy": None, "final_accuracy": None}, None),
        ({}, None),
    ],
)
def test_the_latest_accuracy_is_the_final_one_where_there_is_one_and_zero_is_one(row, accuracy):
    assert latest_accuracy(row) == accuracy


def test_json_has_no_infinity_and_no_nan(tmp_path):
    """Python's own writer makes `Infinity` of a client without a limit, which no other program reads as JSON."""
    row = {"round": 1, "limit": math.inf, "nested": [{"a": -math.inf, "b": (math.nan, 0.5)}], 3: "three"}
    as_read = {"round": 1, "limit": None, "nested": [{"a": None, "b": [None, 0.5]}], "3": "three"}
    append_lines(tmp_path / "rows.jsonl", [row])
    write_json(tmp_path / "one.json", row)
    assert read_lines(tmp_path / "rows.jsonl") == [as_read]
    assert read_json(tmp_path / "one.json") == as_read
    assert keep_rounds(tmp_path / "rows.jsonl", 1) == [as_read]
    for name in ("rows.jsonl", "one.json"):
        assert not re.search("Infinity|NaN", (tmp_path / name).read_text())


def rows(*rounds, note=""):
    return [{"round": number, "note": note} for number in rounds]


@pytest.mark.slow
def test_what_follows_a_history_reads_each_byte_of_it_once(tmp_path):
    """Two thousand rounds, one at a time: what is read is what there is, and the last line again each time."""
    path = tmp_path / "history.jsonl"
    tail = Tail(path)
    assert tail.new_rows() == []
    for number in range(1, 2001):
        with path.open("a") as file:
            file.write(to_json({"round": number, "note": ""}) + "\n")
        assert tail.new_rows() == rows(number)
        if number % 3 == 0:
            assert tail.new_rows() == []
    longest = len(read_lines(path)[-1].__repr__()) + 2
    assert tail.bytes_read <= path.stat().st_size + 3000 * longest


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path):
    path = tmp_path / "history.jsonl"
    tail = Tail(path)
    whole = b'{"round": 1, "note": ""}\n'
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert tail.new_rows() == []
    path.write_bytes(whole)
    assert tail.new_rows() == rows(1)


@pytest.mark.parametrize("note", ["", "longer than it was", "again"])
def test_rounds_that_a_resumed_run_repeats_are_read_again(note, tmp_path):
    """Killed in round 4 after its lines, before its checkpoint: the line goes, and another comes, long or short."""
    path = tmp_path / "history.jsonl"
    append_lines(path, rows(1, 2, 3, 4, note="first"))
    tail = Tail(path)
    assert tail.new_rows() == rows(1, 2, 3, 4, note="first")
    assert keep_rounds(path, 3) == rows(1, 2, 3, note="first")
    append_lines(path, rows(4, note=note))
    assert tail.new_rows() == rows(4, note=note)
    append_lines(path, rows(5))
    assert tail.new_rows() == rows(5)


def test_a_file_is_cut_in_its_place_and_what_is_kept_keeps_its_bytes(tmp_path):
    path = tmp_path / "history.jsonl"
    lines = [b'{"round": 1}\n', b'{"round":   2}\n', b'{"round": 3}\n', b'{"rou']
    path.write_bytes(b"".join(lines))
    before = path.stat().st_ino
    assert [row["round"] for row in keep_rounds(path, 2)] == [1, 2]
    assert path.read_bytes() == lines[0] + lines[1]
    assert path.stat().st_ino == before
    assert keep_rounds(path, 0) == []
    assert path.read_bytes() == b""
    assert keep_rounds(tmp_path / "none.jsonl", 3) == []


def test_of_clients_that_hold_more_than_a_tenth_of_the_examples_a_line_says_in_how_many_rounds_they_were_not_used():
    summary = {"rounds": 20, "excluded_by_client": {"0": 14, "11": 20, "2": 14}, "excluded_examples_share": 0.526}
    assert excluded_line(summary) == (
        "clients that hold 52.6 % of all training examples were refused or left out: client 11 in 20 of 20 rounds, "
        "client 0 in 14 of 20 rounds, client 2 in 14 of 20 rounds; history.jsonl says why"
    )
    assert excluded_line({**summary, "excluded_examples_share": 0.1}) is None
    assert excluded_line({"rounds": 20}) is None  # of a run of before
    many = excluded_line({**summary, "excluded_by_client": {str(client): 1 for client in range(9)}})
    assert many is not None
    assert "client 4 in 1 of 20 rounds and 4 more;" in many
