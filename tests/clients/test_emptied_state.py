"""A device whose state was emptied in the middle of a run says so in one line, with the place, and goes on."""

import json
import shutil

import pytest

from spatl.runs.records import read_lines
from tests.support.federations import tiny_config
from tests.support.lossy import Clock, serve_over


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedavg", "spatl"])
def test_an_emptied_state_is_named_with_its_place_on_the_device_and_without_it_on_the_server(
    tmp_path, monkeypatch, caplog, method
):
    config = tiny_config(
        method=method, rounds=5, partition={"name": "iid", "num_clients": 3}, wire={"downlink": "adaptive"}
    )
    (tmp_path / "device.yaml").write_text("limits: {rounds_a_day: 100}")
    (tmp_path / "device.yaml").chmod(0o600)
    emptied = []

    def empties(way, client, message):
        asked = message.metadata
        if (way, client, asked.message_type, asked.group_id) == ("uplink", 1, "train", "2"):
            for path in (tmp_path / "device-1" / "tiny").glob("*.safetensors"):
                path.unlink()
            emptied.append(client)
        return False

    serve_over(config, tmp_path, Clock(), loses=empties, patch=monkeypatch)
    assert emptied == [1]
    named = [record.getMessage() for record in caplog.records if "there is no state in" in record.getMessage()]
    assert len(named) == 1
    assert named[0].startswith(
        f"round 3: there is no state in {tmp_path / 'device-1' / 'tiny'}, though the server has "
    )
    rows = read_lines(tmp_path / "run" / "history.jsonl")
    assert [[each["client"] for each in row["rejections"]] for row in rows] == [[], [], [1], [], []]
    assert str(tmp_path) not in rows[2]["rejections"][0]["reason"]
    begun = (tmp_path / "device-1" / "rounds.txt").read_text().split()
    assert len(begun) == 4  # the third was none
    assert [row["forgot"] for row in rows] == [[], [], [1] if method == "spatl" else [], [], []]
    assert [row["control_anew"] for row in rows] == [False, False, False, method == "spatl", False]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedavg", "spatl"])
def test_a_device_whose_whole_directory_is_gone_registers_again_in_the_next_round_and_takes_part(
    tmp_path, monkeypatch, caplog, method
):
    config = tiny_config(
        method=method, rounds=5, partition={"name": "iid", "num_clients": 3}, wire={"downlink": "adaptive"}
    )
    emptied = []

    def empties(way, client, message):
        asked = message.metadata
        if (way, client, asked.message_type, asked.group_id) == ("uplink", 1, "train", "2"):
            shutil.move(tmp_path / "device-1" / "tiny", tmp_path / "renamed")
            emptied.append(client)
        return False

    summary, _ = serve_over(config, tmp_path, Clock(), loses=empties, patch=monkeypatch)
    assert emptied == [1]
    rows = read_lines(tmp_path / "run" / "history.jsonl")
    assert [[each["client"] for each in row["rejections"]] for row in rows] == [[], [], [1], [], []]
    assert "what it kept of it was emptied or renamed" in rows[2]["rejections"][0]["reason"]
    assert [row["participants"] for row in rows] == [3, 3, 2, 3, 3]
    assert [row["control_anew"] for row in rows] == [False, False, False, method == "spatl", False]
    assert summary["not_evaluated"] == 0
    asked = [row for row in read_lines(tmp_path / "run" / "ledger.jsonl") if row["phase"] == "query"]
    assert [(row["round"], row["client"]) for row in asked if row["round"] > 1] == [(4, 1)] * 2
    assert json.loads((tmp_path / "device-1" / "tiny" / "pinned.json").read_text())["rounds"] == 5
    assert any("client 1 has registered again" in record.getMessage() for record in caplog.records)
