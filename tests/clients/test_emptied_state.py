"""A device whose state was emptied in the middle of a run says so in one line, with the place, and goes on."""

import pytest

from spatl.runs.records import read_lines
from tests.support.federations import tiny_config
from tests.support.lossy import Clock, serve_over


@pytest.mark.parametrize("method", ["fedavg", "spatl"])
def test_an_emptied_state_is_named_with_its_place_on_the_device_and_without_it_on_the_server(
    tmp_path, monkeypatch, caplog, method
):
    config = tiny_config(
        method=method, rounds=5, partition={"name": "iid", "num_clients": 3}, wire={"downlink": "adaptive"}
    )
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
    assert [row["forgot"] for row in rows] == [[], [], [1] if method == "spatl" else [], [], []]
    assert [row["control_anew"] for row in rows] == [False, False, False, method == "spatl", False]
