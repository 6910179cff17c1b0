"""A device that keeps nothing of its registration is asked for it again, with what the clients have agreed on."""

import shutil

import pytest

from spatl.runs.records import read_lines
from tests.support.lossy import Clock, serve_over
from tests.support.own_data import own_config, write_data


def emptying(base, *, then=lambda: None):
    """Empties device 1 after its second round."""

    def loses(way, client, message):
        asked = message.metadata
        if (way, client, asked.message_type, asked.group_id) == ("uplink", 1, "train", "2"):
            shutil.rmtree(base / "device-1")
            then()
        return False

    return loses


@pytest.mark.slow
def test_a_device_with_data_of_its_own_is_told_again_what_was_agreed_on(devices, monkeypatch):
    config = own_config(rounds=5)
    summary, _ = serve_over(config, devices, Clock(), loses=emptying(devices), patch=monkeypatch, data=devices)
    rows = read_lines(devices / "run" / "history.jsonl")
    assert [row["participants"] for row in rows] == [3, 3, 2, 3, 3]
    assert summary["not_evaluated"] == 0
    assert "lost what the clients have agreed on" in rows[2]["rejections"][0]["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [90, 150])
def test_one_whose_data_are_others_by_then_is_named_and_stays_out(devices, monkeypatch, caplog, number):
    config = own_config(rounds=5)
    loses = emptying(devices, then=lambda: write_data(devices / "1.npz", number, range(4)))
    serve_over(config, devices, Clock(), loses=loses, patch=monkeypatch, data=devices)
    rows = read_lines(devices / "run" / "history.jsonl")
    assert [row["participants"] for row in rows] == [3, 3, 2, 2, 2]
    assert any(
        "client 1 takes no part: client 1 has" in record.getMessage() and "training examples" in record.getMessage()
        for record in caplog.records
    )


@pytest.mark.slow
def test_one_that_is_there_and_does_not_register_again_is_not_asked_to_train_and_it_counts_as_a_failure(
    devices, monkeypatch, caplog
):
    config = own_config(rounds=6, server={"max_failures": 2, "rounds_away": 10, "connect_timeout_seconds": 0.2})
    empties, emptied = emptying(devices, then=lambda: emptied.append(1)), []

    def loses(way, client, message):
        return empties(way, client, message) or bool(
            emptied and (way, client, message.metadata.message_type) == ("downlink", 1, "query")
        )

    serve_over(config, devices, Clock(), loses=loses, patch=monkeypatch, data=devices)
    rows = read_lines(devices / "run" / "history.jsonl")
    assert [row["participants"] for row in rows] == [3, 3, 2, 2, 2, 2]
    assert [row["rejected"] for row in rows] == [0, 0, 1, 0, 0, 0]  # round 3; before round 4 it does not answer
    assert [row["left_out"] for row in rows] == [[], [], [], [1], [1], [1]]
    assert "client 1 is connected and did not answer, its failure 2 in a row" in caplog.text
