"""What a client holds when its answers are lost, through the real apps."""

import json

import pytest

from spatl.rounds.downlink import Reference
from tests.studies.losses import accuracy_with
from tests.support.federations import (
    COMPRESSED,
    DENSE,
    assert_c_is_the_weighted_sum_of_the_c_i,
    harm_state,
    run_tiny,
    tiny_config,
)


@pytest.mark.slow
def test_a_client_that_was_led_from_the_initial_encoder_in_vain_is_led_from_it_again(tmp_path, monkeypatch):
    """Version 3 is reached from version 0, as if that were shorter, and the answers to it are lost.

    The clients keep no version 2 then, which the server had known them to hold.
    """
    shortest = Reference._shortest
    monkeypatch.setattr(Reference, "_shortest", lambda self, held: shortest(self, 0 if self.version == 3 else held))
    config = tiny_config(rounds=5, method="fedavg", wire={"uplink": "adaptive", "downlink": "adaptive"})

    def loses(client: int, message) -> bool:
        return client > 0 and message.metadata.message_type == "train" and message.metadata.group_id == "4"

    run_tiny(config, tmp_path, loses=loses)
    rounds = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [each["missing"] for each in rounds] == [0, 0, 0, 4, 0]
    assert [each["rejections"] for each in rounds] == [[]] * 5


@pytest.mark.slow
@pytest.mark.parametrize("wire", [DENSE, COMPRESSED], ids=["dense", "compressed"])
@pytest.mark.parametrize("lost", [True, False])
def test_a_damaged_state_is_replaced_by_the_one_before_only_if_c_stays_the_weighted_sum(
    tmp_path, strategies, wire, lost
):
    """Client 2's of round 2: if its answer is lost too, it never was; if the server has it, all c_i begin anew."""

    def loses(client: int, message) -> bool:
        if client != 2 or message.metadata.message_type != "train" or message.metadata.group_id != "2":
            return False
        harm_state(tmp_path, 2, running=True)
        return lost

    config = tiny_config(rounds=5, method="spatl", selection={"selector": "update"}, wire=wire)
    run_tiny(config, tmp_path, loses=loses)
    rounds = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [each["missing"] for each in rounds] == [0, int(lost), 0, 0, 0]
    refused = [[each["client"] for each in row["rejections"]] for row in rounds]
    assert refused == [[], [], [] if lost else [2], [], []]
    if not lost:
        assert "its control variate of round 0, the server that of round 2" in rounds[2]["rejections"][0]["reason"]
    (strategy,) = strategies
    assert strategy.state.control_since == (0 if lost else 4)
    assert_c_is_the_weighted_sum_of_the_c_i(config, tmp_path, strategy.state)


@pytest.mark.slow
def test_a_third_of_the_replies_lost_costs_less_than_a_point(tmp_path):
    """Thirty rounds, the seed that lost most in docs/robustness.md."""
    whole, _ = accuracy_with(0.0, seed=1, rounds=30, directory=tmp_path / "whole")
    lossy, missing = accuracy_with(0.3, seed=1, rounds=30, directory=tmp_path / "lossy")
    assert 60 < missing < 120
    assert lossy > whole - 0.01
