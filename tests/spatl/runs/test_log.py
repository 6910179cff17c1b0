"""The log of a run is JSON, line by line, and holds what happened and what went wrong."""

import json
import logging
import sys
from datetime import datetime

import pytest

from server.engines import run_inline
from spatl.errors import SpatlError
from spatl.rounds.remembered import remembered_warnings
from spatl.runs.log import EVENTS, logged_to
from spatl.runs.records import read_lines
from tests.support.federations import blueprint_of, tiny_config


def test_a_line_has_time_level_message_and_the_facts_of_its_record(tmp_path):
    path = tmp_path / "log.jsonl"
    with logged_to(path):
        EVENTS.info("round %d is over", 3, extra={"round": 3})
        logging.getLogger("server.strategy").warning("refused “this”\nand that", extra={"round": 3, "client": 1})
        logging.getLogger("server.strategy").info("of no interest")
        try:
            raise ValueError("a bug")
        except ValueError:
            logging.getLogger("flwr").exception("it failed")
    EVENTS.info("after the run")
    over, refused, failed = read_lines(path)
    assert {key: value for key, value in over.items() if key != "time"} == {
        "level": "info", "logger": "spatl.events", "message": "round 3 is over", "round": 3,
    }  # fmt: skip
    assert datetime.fromisoformat(over["time"]).utcoffset() is not None
    assert (refused["level"], refused["client"], refused["message"]) == ("warning", 1, "refused “this”\nand that")
    assert "ValueError: a bug" in failed["traceback"]


@pytest.mark.slow
def test_a_run_logs_its_rounds_and_why_it_failed(tmp_path, capsys):
    run_inline(tiny_config(rounds=2), tmp_path / "good")
    messages = [row["message"] for row in read_lines(tmp_path / "good" / "log.jsonl")]
    assert messages[0] == "5 clients registered; round 1 of 2 is next"
    assert [message.split(":")[0] for message in messages[1:]] == ["round 1", "round 2"]
    with pytest.raises(SpatlError):
        run_inline(tiny_config(training={"device": "cuda:7"}), tmp_path / "bad")
    assert read_lines(tmp_path / "bad" / "log.jsonl")[-1]["level"] == "error"
    assert "spatl.events" not in capsys.readouterr().err


def test_what_is_logged_after_a_torn_line_is_whole(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"level": "info"}\n{"level": "wa')
    for message in ("first", "second"):
        with logged_to(path):
            EVENTS.info(message)
    *_, first, second = path.read_text().splitlines()
    assert [json.loads(line)["message"] for line in (first, second)] == ["first", "second"]


@pytest.fixture
def plain_logs():
    """Records as Python makes them, whatever a test before has had made of all."""
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(logging.LogRecord)
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.usefixtures("plain_logs")
def test_every_line_of_a_log_is_one_object(tmp_path):
    with logged_to(tmp_path / "log.jsonl"):
        EVENTS.info("a\nb\u2028c")
    (line,) = (tmp_path / "log.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert json.loads(line)["message"] == "a\nb\u2028c"


@pytest.mark.slow
@pytest.mark.parametrize("made_before", [True, False])
def test_what_is_said_while_a_run_is_prepared_is_in_its_log_once_and_on_screen(tmp_path, caplog, made_before):
    """Channels whose readers cannot be proved, as `spatl run` sees them before there is a directory."""
    model = {"name": "tests.support.families.rearranged:Flip", "options": {}, "cut": ["head"]}
    config = tiny_config(model=model, rounds=1, seed=4 + made_before)
    if made_before:
        blueprint_of(config)
    run_inline(config, tmp_path)
    text = "those of stem.0 (other channels reach layer after.0 than the graph says)"
    (line,) = [row for row in read_lines(tmp_path / "log.jsonl") if text in row["message"]]
    assert (line["level"], line["logger"]) == ("warning", "spatl.channels.tracing")
    assert text in caplog.text


def test_warnings_that_are_remembered_reach_the_terminal_where_nobody_else_listens(monkeypatch, capsys):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(logging, "lastResort", logging.StreamHandler(sys.stderr))
    with remembered_warnings() as records:
        logging.getLogger("a").warning("seen")
        logging.getLogger("a").info("of no interest")
    assert [record.getMessage() for record in records] == ["seen"]
    assert capsys.readouterr().err == "seen\n"
    assert root.handlers == []
